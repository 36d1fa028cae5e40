"""LoRA sites: the linears an adapter may change, and what makes them add its product.

Owns the list that `ImageSpec.sites` is made of. A site is any module that multiplies the step's
rows, in order, by one matrix: nn.Linear, transformers' Conv1D, what a quantizer put in a
linear's place, the head. It keeps its own forward and its own parameters under their own names;
only its class changes, to one that adds the adapters' product to what the base says. Does not
know ranks, slots or pages: the step's context does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...adapters.image import Site
from ..errors import ModelRefused
from .context import StepContext
from .row_probe import SeenLinear, find_siblings, probe_linears, take_columns


class LoraSite(nn.Module):
    """Put before the class of a linear of the base: adds what the step's adapters say."""

    site: int  # index into ImageSpec.sites
    at_head: bool  # whether it is given the sampled rows only
    context: StepContext

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        self.begin_adapters(input)
        return self.add_adapters(input, super().forward(input))

    def begin_adapters(self, input: Tensor) -> None:  # noqa: A002
        """Before the base says anything: helpers compute at the same time."""
        step = self.context.head if self.at_head else self.context.lora
        if step is not None:
            step.begin((self.site,), input)

    def add_adapters(self, input: Tensor, out: Tensor) -> Tensor:  # noqa: A002
        """What the base says, `out`, and what the step's adapters add to it."""
        step = self.context.head if self.at_head else self.context.lora
        if step is None:
            return out
        out = out.contiguous()
        step.add((self.site,), input, (out.view(-1, out.shape[-1]),))
        return out


class LoraLinear(LoraSite, nn.Linear):
    """weight [out, in]."""


class LoraConv1D(LoraSite, Conv1D):  # pyright: ignore[reportIncompatibleMethodOverride]
    """GPT-2's linear: weight [in, out]."""


@dataclass(frozen=True, slots=True)
class InstalledSites:
    """What an adapter may change, and which of it is computed from the same numbers."""

    sites: tuple[Site, ...]
    # Sites of one module that are given the very same input, each group in the order of its calls.
    siblings: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()  # what had to be left apart


def install_sites(
    model: PreTrainedModel, context: StepContext, *, num_layers: int
) -> InstalledSites:
    """Turn every linear that sees the step's rows in order into a site.

    Raises:
        ModelRefused: no list of decoder layers, or no linear in it.
    """
    seen = probe_linears(model, context)
    sites: list[Site] = []
    idx_of: dict[str, int] = {}
    for linear, layer in order_linears(model, seen, num_layers=num_layers):
        module = linear.module
        try:
            module.__class__ = _site_class(type(module))
        except TypeError as error:
            raise ModelRefused(
                f"{linear.name} is a {type(module).__name__}, which cannot carry an adapter: "
                f"{error}",
                field="--model",
            ) from error
        assert isinstance(module, LoraSite)
        module.site, module.at_head, module.context = len(sites), linear.at_head, context
        idx_of[linear.name] = len(sites)
        sites.append(Site(linear.name, layer, linear.in_width, linear.out_width))
    groups = find_siblings(seen)
    notes = list[str]()
    if not take_columns(model, context, [linear.module for group in groups for linear in group]):
        groups = []
        notes.append("linears that share an input stay apart: their outputs must be contiguous")
    return InstalledSites(
        tuple(sites),
        tuple(tuple(idx_of[linear.name] for linear in group) for group in groups),
        tuple(notes),
    )


def find_sites(model: PreTrainedModel) -> dict[int, LoraSite]:
    """The modules of the sites, by site."""
    return {m.site: m for m in model.modules() if isinstance(m, LoraSite)}


def order_linears(
    model: PreTrainedModel, seen: Sequence[SeenLinear], *, num_layers: int
) -> list[tuple[SeenLinear, int]]:
    """With the layer that each is of: layer by layer, each layer's in the order of its modules,
    what comes before the layers with the first, and what comes after with a layer of its own, the
    head last: a load lands in this order, and a step needs it in this order.

    Raises:
        ModelRefused: no list of decoder layers, or no linear in it.
    """
    prefix, layers = find_layers(model, num_layers)
    by_name = {linear.name: linear for linear in seen}
    inside: list[tuple[SeenLinear, int]] = []
    for idx, layer in enumerate(layers):
        for name, _ in layer.named_modules(prefix=f"{prefix}.{idx}"):
            linear = by_name.pop(name, None)
            if linear is not None:
                inside.append((linear, idx))
    if not inside:
        raise ModelRefused(
            f"{type(model).__name__} has no linear in {prefix} that sees the rows of a step in "
            "order",
            field="--model",
        )
    first_call = min(linear.call for linear, _ in inside)
    outside = sorted(by_name.values(), key=lambda linear: (linear.at_head, linear.call))
    before = [(linear, 0) for linear in outside if linear.call < first_call]
    after = [(linear, len(layers)) for linear in outside if linear.call > first_call]
    return [*before, *inside, *after]


@cache
def _site_class(base: type[nn.Module]) -> type[nn.Module]:
    for known in (LoraLinear, LoraConv1D):
        if known.__mro__[2] is base:
            return known
    return type(f"Lora{base.__name__}", (LoraSite, base), {})


def find_layers(model: PreTrainedModel, num_layers: int) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder layers.

    Raises:
        ModelRefused: there is no such list.
    """
    for name, module in model.named_modules():
        # An image encoder may have as many layers; only attention knows its place in a decoder.
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == num_layers
            and any(hasattr(part, "layer_idx") for part in module[0].modules())
        ):
            return name, module
    raise ModelRefused(
        f"{type(model).__name__} has no list of {num_layers} decoder layers", field="--model"
    )


@torch.inference_mode()
def rms_weight(linear: LoraSite, zeros_1I: Tensor) -> float:
    """Root mean square of a linear's weights, from what it makes of random rows like `zeros_1I`.

    That needs no look at a weight, which may lie either way around or be packed.
    """
    in_width = zeros_1I.shape[1]
    rows_TI = torch.randn(16, in_width, generator=torch.Generator().manual_seed(0)).to(zeros_1I)
    product_TO = linear(rows_TI) - linear(zeros_1I)
    return float(product_TO.float().square().mean().sqrt()) / in_width**0.5
