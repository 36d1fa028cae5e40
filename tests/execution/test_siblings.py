"""Siblings: one product for linears that share an input, and never the wrong one."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from lorry.server.execution.batch import StepRow
from lorry.server.execution.model import LoadedModel, fingerprint_of, prepare_model
from lorry.server.execution.packed import MIN_ELEMENTS, PackedLinear
from lorry.server.execution.selfproof import prove
from lorry.server.execution.siblings import Sibling, merge_siblings
from lorry.server.execution.sites import LoraLinear, find_sites
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.builders import ALL_LINEAR
from lorry.tests.execution_builders import (
    assert_mixed_batch_equals_peft,
    make_bench,
    random_peft,
    tiny_llama,
)

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default}


def merged_model(model: PreTrainedModel, *, min_packed_elements: int = MIN_ELEMENTS) -> LoadedModel:
    loaded = prepare_model(model)
    merge_siblings(loaded.model, loaded.siblings, min_packed_elements=min_packed_elements)
    return loaded


def names_of(loaded: LoadedModel) -> list[list[str]]:
    names = [site.name.rpartition(".")[2] for site in loaded.image_spec.sites]
    return [[names[site] for site in group] for group in loaded.siblings]


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def siblings_of(loaded: LoadedModel) -> list[Sibling]:
    return [module for module in loaded.model.modules() if isinstance(module, Sibling)]


class _Count(TorchDispatchMode):
    """Counts the products of the base: those with a weight of its."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.widths[out.shape[-1]] += 1
        return out


class _Blocked(nn.Module):
    """An MLP whose gate asks for a view that only a buffer of its own can give."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.gate(hidden)
        return gate.view(-1).view(hidden.shape) * self.up(hidden)


class _Apart(_Blocked):
    """Its two linears are given one tensor, whose numbers change in between."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        gate = self.gate(hidden)
        return gate * self.up(hidden.mul_(0.5))


def test_siblings_are_found_by_what_they_are_given() -> None:
    """Of q, k, v, o and gate, up, down those that read the same tensor, whatever their names."""
    loaded = prepare_model(tiny_llama())
    assert names_of(loaded) == [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]] * 2


def test_a_tensor_that_changes_between_two_calls_is_not_the_same_input() -> None:
    """One product for both would be wrong for the second."""
    model = tiny_llama()
    model.model.layers[0].mlp = _Apart(64)  # pyright: ignore[reportArgumentType]
    loaded = merged_model(model)
    assert names_of(loaded) == [["q_proj", "k_proj", "v_proj"]] * 2 + [["gate_proj", "up_proj"]]
    prove(loaded)


def test_a_model_that_takes_no_columns_is_left_as_it_is() -> None:
    """Refusing a model for the sake of a faster product would be the wrong way around."""
    model = tiny_llama()
    model.model.layers[0].mlp = _Blocked(64)  # pyright: ignore[reportArgumentType]
    loaded = merged_model(model)
    assert loaded.siblings == ()
    assert "stay apart" in loaded.notes[0]
    prove(loaded)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_model_proves_itself(dtype: torch.dtype, *, packed: bool) -> None:
    """Twice, with adapters everywhere: the proof's own side must leave what it found."""
    model = tiny_llama(attention_bias=True).to(dtype)
    model.model.layers[0].self_attn.k_proj.bias = None  # pyright: ignore
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.bias.normal_()
    loaded = merged_model(model, min_packed_elements=1 if packed else 1 << 40)
    assert len(siblings_of(loaded)) == 10
    assert all((s.packed is not None) == packed for s in siblings_of(loaded))
    kept = [(s.weight.data_ptr(), s.packed) for s in siblings_of(loaded)]
    for _ in range(2):
        assert "off by" in prove(loaded)
    assert [(s.weight.data_ptr(), s.packed) for s in siblings_of(loaded)] == kept


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_weight_is_held_once(*, packed: bool) -> None:
    """A merged copy beside the members' own would be most of the model's size again."""
    loaded = merged_model(tiny_llama(), min_packed_elements=1 if packed else 1 << 40)
    q, k, v = siblings_of(loaded)[:3]
    if packed:
        for one in (q, k, v):
            assert one.weight.untyped_storage().nbytes() == one.weight.itemsize
            assert one.weight.isnan().all(), "whoever reads it must not get a number"
        return
    storage = q.weight.untyped_storage()
    assert storage.data_ptr() == k.weight.untyped_storage().data_ptr()
    assert storage.nbytes() == 4 * (q.weight.numel() + k.weight.numel() + v.weight.numel())
    assert k.weight.data_ptr() == q.weight.data_ptr() + 4 * q.weight.numel()


def test_names_and_numbers_of_the_base_stay() -> None:
    """An adapter's sites, a fingerprint and a hash are all said in the model's own terms."""
    model = tiny_llama(attention_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fingerprint = fingerprint_of(model)
    merged_model(model, min_packed_elements=1 << 40)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert fingerprint_of(model) == fingerprint


def test_only_plain_weights_are_merged() -> None:
    """A tied weight has another reader, and a weight of another kind another product."""
    model = tiny_llama()
    loaded = prepare_model(model)
    gates = [_linear(model, f"model.layers.{i}.mlp.gate_proj") for i in range(2)]
    gates[0].weight = gates[1].weight
    _linear(model, "model.layers.0.self_attn.q_proj").to(torch.float64)
    merge_siblings(model, loaded.siblings)
    merged = {name for name, module in model.named_modules() if isinstance(module, Sibling)}
    assert merged == {
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        *(f"model.layers.1.self_attn.{name}_proj" for name in "qkv"),
    }


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_no_member_is_ever_given_what_another_input_made(*, packed: bool) -> None:
    """A product left over, a tensor used again, members out of turn, alone or twice."""
    plain = tiny_llama()
    loaded = merged_model(copy.deepcopy(plain), min_packed_elements=1 if packed else 1 << 40)
    context = loaded.context
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    generator = torch.Generator().manual_seed(0)
    input_1TI = torch.randn(1, 3, 64, generator=generator)

    def same(*places: int) -> None:
        for place in places:
            ours = loaded.model.get_submodule(names[place])(input_1TI)
            torch.testing.assert_close(ours, _linear(plain, names[place])(input_1TI))

    def never(*_: object) -> Tensor:
        raise AssertionError

    same(1, 1, 0)  # outside a step
    context.attend = never
    same(2, 0, 1)
    same(0, 0, 2, 2, 1, 1)
    same(1)
    # The next forward: the same tensor with other numbers, after one that was broken off.
    context.clear()
    context.attend = never
    input_1TI.normal_(generator=generator)
    same(0, 2, 1)
    same(2)
    input_1TI = torch.randn(1, 3, 64, generator=generator)
    same(0)
    context.clear()
    same(1, 2)


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj", "up_proj"), ALL_LINEAR], ids=["some", "all"]
)
def test_merged_tokens_equal_peft(targets: Sequence[str]) -> None:
    """Adapters write into columns of one buffer: one that lacks a sibling must not shift them."""
    model = tiny_llama(attention_bias=True)
    bench = make_bench(model, prepare=merged_model)
    adapters = [random_peft(model, rank=rank, seed=rank, targets=targets) for rank in (3, 17)]
    assert_mixed_batch_equals_peft(bench, model, adapters)


def test_a_step_multiplies_once_a_group() -> None:
    """The point of it all: a merged weight that is read once for each member costs three times."""
    bench = make_bench(tiny_llama(), prepare=merged_model)
    row = StepRow(0, [1, 2, 3], 3, 0, bench.take(1), -1, True, SamplingParams())
    with _Count() as count:
        bench.runner.run([row])
    # hidden 64, heads 4 of 16 over 2: q, k, v are 64 + 32 + 32 wide; gate, up 96 each.
    assert count.widths == {128: 2, 192: 2, 64: 4, 131: 1}


def test_every_class_of_site_stays_one() -> None:
    """Whoever asks for the sites' modules must find the merged ones among them."""
    loaded = merged_model(tiny_llama())
    assert len(find_sites(loaded.model)) == len(loaded.image_spec.sites) == 15
    kinds = Counter(type(module) for module in find_sites(loaded.model).values())
    assert kinds == {Sibling: 10, LoraLinear: 5}
    assert issubclass(Sibling, PackedLinear)
