"""Sites: which modules are one, in what order, and that each adds what PEFT's layer adds."""

import copy
import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lorry.server.execution.base_hashes import PIECE_ELEMENTS, hashes_of
from lorry.server.execution.batch import StepBuffers, StepRow, build_batch
from lorry.server.execution.model import prepare_model
from lorry.server.execution.selfproof import prove
from lorry.server.execution.sites import LoraConv1D, LoraLinear, LoraSite, find_sites
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.execution_builders import (
    LIMITS,
    assert_mixed_batch_equals_peft,
    make_bench,
    random_peft,
    tiny_llama,
)


def tiny_gpt2() -> GPT2LMHeadModel:
    """Conv1D everywhere, a fused c_attn, a tied head."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=131,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


HEADS = {
    "llama": (tiny_llama, ("q_proj", "lm_head")),
    "llama-tied": (lambda: tiny_llama(tie_word_embeddings=True), ("down_proj", "lm_head")),
    "head-alone": (tiny_llama, ("lm_head",)),
    "gpt2": (tiny_gpt2, ("c_attn", "c_proj", "c_fc", "lm_head")),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(("make", "targets"), HEADS.values(), ids=HEADS)
def test_heads_and_conv1d_equal_peft(make: object, targets: Sequence[str]) -> None:
    """The head sees the sampled rows alone, so its segments are its own: a chunk that ends
    without a sample, or a base row between, must not shift them."""
    model: PreTrainedModel = make()  # pyright: ignore
    adapters = [
        random_peft(model, rank=rank, seed=rank, targets=targets, fan_in_fan_out=make is tiny_gpt2)
        for rank in (3, 17)
    ]
    bench = make_bench(model)
    assert_mixed_batch_equals_peft(bench, model, adapters)


def test_a_tied_head_stays_the_embedding() -> None:
    """A copy of the largest weight would double the memory, and its hash is worth one reading."""
    model = tiny_llama(tie_word_embeddings=True)
    loaded = prepare_model(model)
    assert isinstance(model.lm_head, LoraLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding, head = loaded.image_spec.base_weights
    assert (embedding.name, head.name) == ("model.embed_tokens", "lm_head")
    assert embedding.hashes == head.hashes
    assert head.shape == (131, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hashes_are_of_the_bytes_that_a_file_holds(dtype: torch.dtype) -> None:
    """Whatever precision PEFT saved a weight in, its bytes must be found; pieces change nothing."""
    weight = torch.randn(3, PIECE_ELEMENTS // 2, generator=torch.Generator().manual_seed(0))
    weight = weight.to(dtype)
    for name, found in hashes_of(weight):
        held = weight.to(getattr(torch, name)).contiguous().view(torch.uint8)
        assert found == hashlib.sha256(held.numpy().tobytes()).hexdigest()
    assert [name for name, _ in hashes_of(weight)] == ["float32", "bfloat16", "float16"]


def test_classes_say_what_a_site_was() -> None:
    """A Conv1D keeps its weight [in, out] under its name, and its own forward."""
    model = tiny_gpt2()
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    loaded = prepare_model(model)
    first = loaded.image_spec.sites[0]
    assert (first.name, first.in_width, first.out_width) == ("transformer.h.0.attn.c_attn", 64, 192)
    assert isinstance(find_sites(model)[0], LoraConv1D)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights
    assert loaded.image_spec.sites[-1].name == "lm_head"
    prove(loaded)


class _Scaled(nn.Linear):
    """What a quantizer might put in: a linear with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 1.5


class _Experts(nn.Module):
    """Two experts, each given its rows only; one linear that is given them sorted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.sorted = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        choice = (rows.sum(-1) > 0).long()
        out = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(rows[choice == i])
        order = rows[:, 0].argsort()
        out[order] += self.sorted(rows[order])
        return out.view(hidden.shape)


def test_only_linears_that_see_the_rows_in_order_are_sites() -> None:
    """An adapter's rows cannot be told apart in an expert: such a site would be wrong in silence.
    A linear of another class is served through its own forward."""
    model = tiny_llama()
    plain = copy.deepcopy(model.model.layers[0].self_attn.q_proj)
    scaled = _Scaled(64, 64, bias=False)
    scaled.weight = plain.weight
    model.model.layers[0].self_attn.q_proj = scaled  # pyright: ignore
    model.model.layers[1].mlp = _Experts(64)  # pyright: ignore
    loaded = prepare_model(model)
    names = {site.name for site in loaded.image_spec.sites}
    assert "model.layers.0.self_attn.q_proj" in names
    assert not any(".layers.1.mlp." in name for name in names)
    assert isinstance(scaled, _Scaled)
    assert isinstance(scaled, LoraSite)
    prove(loaded)
    rows = torch.randn(2, 64)
    assert torch.equal(scaled(rows), plain(rows) * 1.5)


def test_head_segments_follow_the_sampled_rows() -> None:
    """A row that is not sampled leaves no gap at the head, and one without an adapter does."""
    buffers = StepBuffers(LIMITS, tokens_per_page=16, device=torch.device("cpu"))
    asked = [(-1, True), (0, False), (0, True), (0, True), (1, False), (2, True)]
    rows = [
        StepRow(i, [1, 2], 2, 0, [0], slot, sample, SamplingParams())
        for i, (slot, sample) in enumerate(asked)
    ]
    found = build_batch(rows, buffers).head_segments
    assert [(s.start, s.end, s.slot) for s in found] == [(1, 3, 0), (3, 4, 2)]
