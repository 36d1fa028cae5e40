"""LoRA sites: the linears of the decoder layers, and what takes their place.

Owns the list that `ImageSpec.sites` is made of and the module that adds the adapters'
products. Weights stay the very same parameters, names included. Does not know ranks, slots
or pages: the step's context does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...adapters.image import Site
from ..errors import ModelRefused
from .context import StepContext


class LoraLinear(nn.Linear):
    """A linear of the base that also adds what the step's adapters say."""

    def __init__(self, base: nn.Linear, site: int, context: StepContext) -> None:
        # Not nn.Linear's own: it would allocate a weight, and ours is the base's.
        nn.Module.__init__(self)
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.weight = base.weight
        self.bias = base.bias
        self.site = site
        self.context = context

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        out = functional.linear(input, self.weight, self.bias)
        step = self.context.lora
        if step is not None:
            hidden_TI = input.reshape(-1, self.in_features)
            if hidden_TI.shape[0] != step.shrunk_TR.shape[0]:
                raise ModelRefused(
                    f"site {self.site} sees {hidden_TI.shape[0]} rows in a step of "
                    f"{step.shrunk_TR.shape[0]}: its rows are not the step's tokens in order",
                    field="--model",
                )
            step.add(self.site, hidden_TI, out.view(-1, self.out_features))
        return out


def install_sites(
    model: PreTrainedModel, context: StepContext, *, num_layers: int
) -> tuple[Site, ...]:
    """Swap every linear of the decoder layers; returns them layer by layer.

    Raises:
        ModelRefused: no list of decoder layers, or no linear in it.
    """
    prefix, layers = _find_layers(model, num_layers)
    sites: list[Site] = []
    for idx, layer in enumerate(layers):
        linears = [(n, m) for n, m in layer.named_modules() if type(m) is nn.Linear]
        for name, linear in linears:
            parent_name, _, child_name = name.rpartition(".")
            swapped = LoraLinear(linear, len(sites), context)
            swapped.train(linear.training)
            setattr(layer.get_submodule(parent_name), child_name, swapped)
            sites.append(
                Site(f"{prefix}.{idx}.{name}", idx, linear.in_features, linear.out_features)
            )
    if not sites:
        raise ModelRefused(f"{type(model).__name__} has no nn.Linear in {prefix}", field="--model")
    return tuple(sites)


def find_sites(model: PreTrainedModel) -> dict[int, LoraLinear]:
    """The swapped linears by site."""
    return {m.site: m for m in model.modules() if isinstance(m, LoraLinear)}


def _find_layers(model: PreTrainedModel, num_layers: int) -> tuple[str, nn.ModuleList]:
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


@torch.no_grad()
def rms_weight(linear: nn.Linear) -> float:
    """Root mean square of a linear's weights."""
    return float(linear.weight.float().square().mean().sqrt())
