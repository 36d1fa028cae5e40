"""Linears whose weights are kept in the order in which a CPU multiplies them.

Owns the packing (oneDNN's own, as torch's compiler uses it) and the linear that computes with
it. A weight is held once: the packed one takes the place of the other, which comes back, exactly,
for as long as the model's own forward is asked for (the self-proof's other side). Does not
know adapters. Called once after a model is loaded; on a device other than a CPU it does nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
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


class PackedLinear(LoraLinear):
    """A site whose `weight` is a placeholder of NaN in the right shape while `packed` is set."""

    packed: Tensor | None  # opaque; no parameter, so that nobody casts or saves it

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        if self.packed is None:
            out = functional.linear(input, self.weight, self.bias)
        else:
            out = _ops().mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return self.add_adapters(input, out)


def pack_linears(model: PreTrainedModel, *, min_elements: int = MIN_ELEMENTS) -> int:
    """Pack every linear that gains by it; returns how many. Weights that are tied stay plain."""
    if model.device.type != "cpu" or not _can_pack(model.dtype):
        return 0
    # With duplicates: a parameter that two modules name is tied.
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    count = 0
    for module in model.modules():
        if (
            type(module) is LoraLinear
            and module.weight.dtype == model.dtype
            # A quantizer's own kind of tensor says that it is of this dtype, too.
            and len(plain_parts(module.weight)) == 1
            and module.weight.numel() >= min_elements
            and uses[id(module.weight)] == 1
        ):
            module.__class__ = PackedLinear
            _pack(cast(PackedLinear, module))
            count += 1
    return count


@contextmanager
def plain_weights(model: PreTrainedModel) -> Generator[None]:
    """Let each packed linear have its own weight while it runs; one at a time is unpacked."""

    def unpack(module: nn.Module, _: object) -> None:
        linear = cast(PackedLinear, module)
        assert linear.packed is not None
        kept[linear] = linear.packed, linear.weight
        linear.weight = _parameter(linear.packed.to_dense())
        linear.packed = None

    def pack_again(module: nn.Module, _: object, __: object) -> None:
        linear = cast(PackedLinear, module)
        # The very placeholder: one made of a weight that somebody has cast would be of the
        # wrong dtype, and the cast back would give it memory of the weight's whole size.
        linear.packed, linear.weight = kept.pop(linear)

    kept: dict[PackedLinear, tuple[Tensor, Tensor]] = {}
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    handles = [m.register_forward_pre_hook(unpack) for m in packed]
    handles += [m.register_forward_hook(pack_again, always_call=True) for m in packed]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _pack(linear: PackedLinear) -> None:
    weight = linear.weight.detach().contiguous()
    linear.packed = _ops().mkldnn._reorder_linear_weight(weight, ROWS_HINT)
    linear.weight = _placeholder(weight)


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
