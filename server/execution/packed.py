"""Linears whose weights are kept in the order in which a CPU multiplies them.

Owns the packing (oneDNN's own, as torch's compiler uses it) and the linear that computes with
it, be it all of what was packed or some rows of it (siblings.py). A weight is held once: the
packed one takes the place of the other, which comes back, exactly, for as long as the model's own
forward is asked for (the self-proof's other side). Does not know adapters. Called once after
a model is loaded; on a device other than a CPU it does nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .refusals import plain_parts
from .sites import LoraLinear

# Weights of fewer elements stay as they are: a packed product has the higher price of its own
# (bench/LOG.md, 2026-11-21).
MIN_ELEMENTS = 1 << 16
ROWS_HINT = 32  # rows of a product that the order is chosen for: a decode step


class PackedWeight:
    """Rows of a matrix [O, I] that was packed as a whole."""

    __slots__ = ("_rows", "_whole")

    def __init__(self, whole: Tensor, rows: slice) -> None:
        self._whole = whole  # opaque: no parameter, so that nobody casts or saves it
        self._rows = rows

    def multiply(self, input: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """What the rows make of `input`; the bias is theirs."""
        if self._is_all():
            return _ops().mkldnn._linear_pointwise(input, self._whole, bias, "none", [], "")
        product = _ops().mkldnn._linear_pointwise(input, self._whole, None, "none", [], "")
        product = product[..., self._rows]
        return product if bias is None else product + bias

    def dense(self) -> Tensor:
        """The weights as they were, to the bit."""
        whole_OI = self._whole.to_dense()
        return whole_OI if self._is_all() else whole_OI[self._rows].clone()

    def part(self, rows: slice) -> PackedWeight:
        """Some of the rows, in the same memory."""
        return PackedWeight(self._whole, rows)

    def _is_all(self) -> bool:
        return self._rows == slice(0, self._whole.shape[0])


class PackedLinear(LoraLinear):
    """A site whose `weight` is a placeholder of NaN in the right shape while `packed` is set."""

    packed: PackedWeight | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        self.begin_adapters(input)
        if self.packed is None:
            out = functional.linear(input, self.weight, self.bias)
        else:
            out = self.packed.multiply(input, self.bias)
        return self.add_adapters(input, out)


def pack_linears(model: PreTrainedModel, *, min_elements: int = MIN_ELEMENTS) -> int:
    """Pack every linear that gains by it; returns how many. Weights that are tied stay plain."""
    count = 0
    for linear in list(plain_linears(model)):
        packed = try_pack(linear.weight.detach(), min_elements)
        if packed is not None:
            linear.__class__ = PackedLinear
            hold_packed(cast(PackedLinear, linear), packed)
            count += 1
    return count


def plain_linears(model: PreTrainedModel) -> Iterator[LoraLinear]:
    """The linears whose weight is a plain matrix in the model's dtype, and nobody else's."""
    # With duplicates: a parameter that two modules name is tied.
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if (
            type(module) is LoraLinear
            and module.weight.dtype == model.dtype
            # A quantizer's own kind of tensor says that it is of this dtype, too.
            and len(plain_parts(module.weight)) == 1
            and uses[id(module.weight)] == 1
        ):
            yield module


@torch.no_grad()
def try_pack(weight_OI: Tensor, min_elements: int) -> PackedWeight | None:
    """None where a packed product would be slower, or is none that this machine has."""
    if weight_OI.device.type != "cpu" or weight_OI.numel() < min_elements:
        return None
    if not _can_pack(weight_OI.dtype):
        return None
    whole = _ops().mkldnn._reorder_linear_weight(weight_OI.contiguous(), ROWS_HINT)
    return PackedWeight(whole, slice(0, len(weight_OI)))


def hold_packed(linear: PackedLinear, packed: PackedWeight) -> None:
    """From now on the linear computes with `packed`; its plain weight is let go."""
    linear.packed = packed
    linear.weight = _placeholder(linear.weight)


@contextmanager
def plain_weights(model: PreTrainedModel) -> Generator[None]:
    """Let each packed linear have its own weight while it runs; one at a time is unpacked."""

    def unpack(module: nn.Module, _: object) -> None:
        linear = cast(PackedLinear, module)
        assert linear.packed is not None
        kept[linear] = linear.packed, linear.weight
        linear.weight = _parameter(linear.packed.dense())
        linear.packed = None

    def pack_again(module: nn.Module, _: object, __: object) -> None:
        linear = cast(PackedLinear, module)
        # The very placeholder: one made of a weight that somebody has cast would be of the
        # wrong dtype, and the cast back would give it memory of the weight's whole size.
        linear.packed, linear.weight = kept.pop(linear)

    kept: dict[PackedLinear, tuple[PackedWeight, Tensor]] = {}
    packed = [m for m in model.modules() if isinstance(m, PackedLinear) and m.packed is not None]
    handles = [m.register_forward_pre_hook(unpack) for m in packed]
    handles += [m.register_forward_hook(pack_again, always_call=True) for m in packed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _placeholder(weight: Tensor) -> nn.Parameter:
    """Shape, dtype and device of a weight in the memory of one number: whoever uses it, shows."""
    return _parameter(torch.full((1,), torch.nan, dtype=weight.dtype).expand(weight.shape))


def _parameter(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_ops().mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _ops() -> Any:
    return torch.ops
