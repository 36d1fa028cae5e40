"""Siblings: linears that one module gives the same input, computed as one product.

Owns the merged weight of q, k and v, or of gate and up, the product that its members share for
the length of their calls, and the launch of all their adapters at once. Members are found by
looking (row_probe.py), not by name, and keep their names and parameters: a weight becomes some
rows of the merged one. Outside a step each computes alone, as its class would: that is what
the self-proof compares with. Called once, after a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .context import StepContext
from .packed import MIN_ELEMENTS, PackedLinear, hold_packed, plain_linears, try_pack
from .sites import LoraLinear, LoraSite, find_sites


class Sibling(PackedLinear):
    """A member; the first one called in a step multiplies for all."""

    place: int  # among its siblings
    siblings: Siblings

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        if self.context.attend is None:
            return super().forward(input)
        return self.siblings.columns(self.place, input)


class Siblings:
    """One matrix for all members, and what it made of the input that they are being given."""

    def __init__(self, members: Sequence[LoraLinear], *, min_packed_elements: int) -> None:
        self._context: StepContext = members[0].context
        self._sites = tuple(member.site for member in members)
        ends = [0, *accumulate(member.out_features for member in members)]
        self._columns = tuple(slice(*pair) for pair in pairwise(ends))
        self._bias_O = _merge_biases(members)
        weight_OI = torch.cat([member.weight.detach() for member in members])
        self._packed = try_pack(weight_OI, min_packed_elements)
        self._weight_OI = weight_OI if self._packed is None else None
        for place, (member, rows) in enumerate(zip(members, self._columns, strict=True)):
            self._adopt(member, place, rows)
        self._input: Tensor | None = None
        self._turn = -1
        self._outs: dict[int, Tensor] = {}  # by place: what has not been asked for yet

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    def columns(self, place: int, input: Tensor) -> Tensor:  # noqa: A002
        """What one member says of `input`, adapters included.

        The product is made when the first member asks, and each part is given out once. The input
        is held until then, so no other tensor can pass for it; and what is left over from another
        forward, whose adapters were others, is never given.
        """
        turn = self._context.turn
        if input is not self._input or turn != self._turn or place not in self._outs:
            self._outs = self._multiply(input)
            self._input, self._turn = input, turn
        out = self._outs.pop(place)
        if not self._outs:
            self._input = None
        return out

    def _multiply(self, input: Tensor) -> dict[int, Tensor]:  # noqa: A002
        step = self._context.lora
        if step is not None:
            step.begin(self._sites, input)
        if self._packed is not None:
            out = self._packed.multiply(input, self._bias_O)
        else:
            assert self._weight_OI is not None
            out = functional.linear(input, self._weight_OI, self._bias_O)
        out = out.contiguous()
        if step is not None:
            out_TO = out.view(-1, out.shape[-1])
            step.add(self._sites, input, [out_TO[:, columns] for columns in self._columns])
        return {place: out[..., columns] for place, columns in enumerate(self._columns)}

    def _adopt(self, member: LoraLinear, place: int, rows: slice) -> None:
        """The member's parameters become parts of ours; its own memory is let go."""
        member.__class__ = Sibling
        sibling = cast(Sibling, member)
        sibling.siblings, sibling.place, sibling.packed = self, place, None
        if _bias_of(member) is not None and self._bias_O is not None:
            sibling.bias = nn.Parameter(self._bias_O[rows], requires_grad=False)
        if self._packed is not None:
            hold_packed(sibling, self._packed.part(rows))
        else:
            assert self._weight_OI is not None
            sibling.weight = nn.Parameter(self._weight_OI[rows], requires_grad=False)


@torch.no_grad()
def merge_siblings(
    model: PreTrainedModel,
    groups: Sequence[Sequence[int]],
    *,
    min_packed_elements: int = MIN_ELEMENTS,
) -> int:
    """Merge the sites of each group as far as they are plain linears; returns how many were packed.

    On a CPU a merged weight is packed at once. One group at a time: the memory of a second one
    is not needed.
    """
    linears = find_sites(model)
    plain = set[LoraSite](plain_linears(model))
    num_packed = 0
    for group in groups:
        members = [cast(LoraLinear, linears[site]) for site in group if linears[site] in plain]
        members = [member for member in members if _has_plain_bias(member)]
        if len(members) > 1:
            merged = Siblings(members, min_packed_elements=min_packed_elements)
            num_packed += len(members) * merged.is_packed
    if model.device.type == "cuda":
        # The allocator cannot make one large block of the small ones that were given back.
        torch.cuda.empty_cache()
    return num_packed


def input_groups(
    model: PreTrainedModel, siblings: Sequence[Sequence[int]] = ()
) -> tuple[tuple[int, ...], ...]:
    """The sites that one forward computes from each of its inputs, the head's aside: merged or not,
    `siblings` have one between them. In the order of their first sites.
    """
    first_of = {site: group[0] for group in siblings for site in group}
    groups: dict[int | Siblings, list[int]] = {}
    for site, module in sorted(find_sites(model).items()):
        if not module.at_head:
            is_merged = isinstance(module, Sibling)
            key = module.siblings if is_merged else first_of.get(site, site)
            groups.setdefault(key, []).append(site)
    return tuple(map(tuple, groups.values()))


def _bias_of(linear: LoraLinear) -> Tensor | None:
    return cast("Tensor | None", linear.bias)  # torch's stubs know no linear without one


def _has_plain_bias(linear: LoraLinear) -> bool:
    bias = _bias_of(linear)
    return bias is None or bias.dtype == linear.weight.dtype


def _merge_biases(members: Sequence[LoraLinear]) -> Tensor | None:
    """Zeros for a member that has none; None if nobody has."""
    biases = [_bias_of(member) for member in members]
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            member.weight.new_zeros(member.out_features) if bias is None else bias.detach()
            for member, bias in zip(members, biases, strict=True)
        ]
    )
