"""The start-up proof: it must pass a sound path and catch every planted bug."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from lorry.kernels.attention import AttentionOptions, AttentionWork
from lorry.kernels.attention import choose_backend as choose_attention
from lorry.kernels.attention import cpu as attention_cpu
from lorry.kernels.lora import LoraWork
from lorry.kernels.lora import choose_backend as choose_lora
from lorry.kernels.lora import cpu as lora_cpu
from lorry.server.errors import ModelRefused
from lorry.server.execution.interface import NAME
from lorry.server.execution.model import prepare_model
from lorry.server.execution.selfproof import prove
from lorry.tests.execution_builders import tiny_llama


class BrokenAttention(attention_cpu.CpuBackend):
    """The serving path, with options changed on the way in."""

    def __init__(self, **changes: object) -> None:
        super().__init__(workspace_elements=1 << 20)
        self._changes = changes

    def paged_attention(
        self,
        query: Tensor,
        kv: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        changed = dataclasses.replace(options, **self._changes)
        return super().paged_attention(query, kv, work, layer=layer, options=changed)


class BrokenLora(lora_cpu.CpuBackend):
    """The serving path, with one fault in what it adds."""

    def __init__(self, *, factor: float = 1.0, shift: int = 0) -> None:
        super().__init__(None)
        self._factor, self._shift = factor, shift

    def add(
        self,
        hidden: Tensor,
        pool: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        before = [out.clone() for out in outs_TO]
        super().add(hidden, pool, work, sites=sites, outs_TO=outs_TO)
        for base, out in zip(before, outs_TO, strict=True):
            out.copy_(base + (out - base).roll(self._shift, 0) * self._factor)


def small_model(**overrides: object):
    return prepare_model(tiny_llama(initializer_range=0.02, **overrides))


def windowed_model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=24,
    )
    return prepare_model(MistralForCausalLM(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_sound_path_passes(dtype: torch.dtype) -> None:
    """The line names what was compared; the model is left as it was, on our attention."""
    loaded = prepare_model(tiny_llama().to(dtype))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    line = prove(loaded)
    assert "off by" in line
    assert str(dtype).removeprefix("torch.") in line
    assert loaded.model.config._attn_implementation == NAME
    assert loaded.context.attend is None
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, before[name])


def test_the_plain_backends_prove_themselves_too() -> None:
    """The definition of correct is one constructor argument away, and a whole model runs on it."""
    line = prove(
        small_model(),
        attention_backend=choose_attention("reference"),
        lora_backend=choose_lora("reference"),
    )
    assert "off by" in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_scaling_is_caught(dtype: torch.dtype) -> None:
    """Another head scaling changes every answer; even flat random weights must show it."""
    loaded = prepare_model(tiny_llama().to(dtype))
    with pytest.raises(ModelRefused, match="allowed are"):
        prove(loaded, attention_backend=BrokenAttention(scaling=0.2))
    if dtype == torch.float32:
        with pytest.raises(ModelRefused, match="base"):
            prove(small_model(), attention_backend=BrokenAttention(scaling=0.2))


def test_an_ignored_window_is_caught() -> None:
    """The proof's prompts are longer than the window, else it would prove nothing of it."""
    loaded = windowed_model()
    assert loaded.max_window == 24
    prove(loaded)
    with pytest.raises(ModelRefused, match="base"):
        prove(loaded, attention_backend=BrokenAttention(sliding_window=None))


@pytest.mark.parametrize(
    "fault", [{"factor": 0.99}, {"factor": 0.0}, {"shift": 1}], ids=["scale", "off", "rows"]
)
def test_wrong_lora_is_caught(fault: dict[str, float]) -> None:
    """A wrong scale, an adapter left out or a row given its neighbour's product is refused."""
    with pytest.raises(ModelRefused, match="adapters"):
        prove(small_model(), lora_backend=BrokenLora(**fault))  # pyright: ignore


def test_a_short_model_len_is_enough() -> None:
    """Prompts are cut to what the model can hold instead of failing the start."""
    assert "4 prompts" in prove(prepare_model(tiny_llama(max_position_embeddings=6)))
