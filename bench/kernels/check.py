"""No speed without a right result: what a way adds, held against the operator's definition.

Owns the comparison and its bounds. The reference reads the pool's tiles in fp32; the error of a
row is its distance from the reference over the lengths of the base and of what LoRA adds there,
which are about equal (inputs.py): one wrong row among thousands is seen, and one where LoRA
happens to add little is not held against the base's own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.lora import LoraBackend, choose_backend
from .inputs import Inputs
from .way import Way

# The bounds of the house for kernels against fp32; fp32 itself adds up in another order.
MAX_ERROR = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-4}


class WrongResult(Exception):
    """What a way computed is not what the operator means."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The right output of the checked layers, in fp32 whatever the dtype."""

    outs: dict[tuple[int, int], Tensor]  # (layer, group) -> [T, O]


def checked_layers(inputs: Inputs) -> tuple[int, ...]:
    """The first and the last: a way that takes one layer's weights for all fails at the last."""
    return tuple(sorted({0, inputs.num_layers - 1}))


def make_expected(inputs: Inputs) -> Expected:
    reference: LoraBackend = choose_backend("reference")
    work = inputs.make_work()
    outs: dict[tuple[int, int], Tensor] = {}
    for layer in checked_layers(inputs):
        for group, shape in enumerate(inputs.case.layer.groups):
            # A copy even where it is fp32 already.
            out = inputs.base(layer, group).to(torch.float32, copy=True)
            reference.add(
                inputs.hidden[layer][group],
                inputs.pool_PE,
                work,
                sites=inputs.sites(layer, group),
                outs_TO=out.split(list(shape.out_widths), dim=1),
            )
            outs[layer, group] = out
    return Expected(outs)


@torch.inference_mode()
def check(way: Way, inputs: Inputs, expected: Expected) -> float:
    """Run the checked layers once from the base; the largest row's error.

    Raises:
        WrongResult: it is over the bound, or not a number.
    """
    worst = 0.0
    limit = MAX_ERROR[inputs.dtype]
    inputs.reset()
    way.prepare()
    for (layer, group), right in expected.outs.items():
        way.add(layer, group)
        base = inputs.base(layer, group).float()
        length = (right - base).norm(dim=1) + base.norm(dim=1)
        error = (inputs.out[layer][group].float() - right).norm(dim=1) / length
        # A NaN is larger than any bound.
        found = float(error.nan_to_num(nan=float("inf")).max())
        if not found <= limit:
            name = inputs.case.layer.groups[group].name
            row = int(error.nan_to_num(nan=float("inf")).argmax())
            raise WrongResult(
                f"{name} of layer {layer}: row {row} is off by {found:.1e} of its length; at most "
                f"{limit:.0e}"
            )
        worst = max(worst, found)
    return worst
