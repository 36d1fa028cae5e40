"""Models as this bench sees them: the linears of one layer, grouped as a step computes them.

Owns the numbers of the models, written out from their published configurations. A group is what
shares an input: query, key and value; output; gate and up; down. Pure; knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.lora import SiteShape


@dataclass(frozen=True, slots=True)
class Group:
    """Linears that are given the same rows; their outputs are column slices of one buffer."""

    name: str
    in_width: int
    out_widths: tuple[int, ...]

    @property
    def out_width(self) -> int:
        return sum(self.out_widths)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A decoder layer of a Llama-like model."""

    name: str
    hidden: int
    q_out: int
    kv_out: int
    mlp: int
    model_layers: int  # of the whole model: what shares the work done once a step

    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order of a step."""
        return (
            Group("qkv", self.hidden, (self.q_out, self.kv_out, self.kv_out)),
            Group("o", self.q_out, (self.hidden,)),
            Group("gate_up", self.hidden, (self.mlp, self.mlp)),
            Group("down", self.mlp, (self.hidden,)),
        )

    @property
    def sites(self) -> tuple[SiteShape, ...]:
        """One a linear, groups one after the other."""
        return tuple(
            SiteShape(group.in_width, out_width)
            for group in self.groups
            for out_width in group.out_widths
        )

    def sites_of(self, layer: int, group: int) -> tuple[int, ...]:
        """Numbers of a group's sites when the layers' sites follow each other."""
        before = sum(len(g.out_widths) for g in self.groups[:group])
        first = layer * len(self.sites) + before
        return tuple(range(first, first + len(self.groups[group].out_widths)))


LAYERS = {
    shape.name: shape
    for shape in (
        LayerShape("llama-8b", hidden=4096, q_out=4096, kv_out=1024, mlp=14336, model_layers=32),
        LayerShape("qwen-0.5b", hidden=896, q_out=896, kv_out=128, mlp=4864, model_layers=24),
        # For dry runs and tests: widths that are no multiple of a tile's 512 columns.
        LayerShape("tiny", hidden=96, q_out=64, kv_out=32, mlp=160, model_layers=2),
    )
}
