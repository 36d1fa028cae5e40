"""The serving path on a CPU: few large products over the workspace, tiles for the rest.

Owns the plan of a step: neighbouring segments become one part as long as the zeros that this
adds to a product cost less than a product of its own. A part multiplies its rows by the A of all
its adapters at once, keeps of each row what belongs to its own adapter, and multiplies that by
all their B: a decode step of many adapters is two products a site, as in a mixture of experts
computed densely. A long prefill segment is a part of its own and does no needless work.
What is kept is selected, not multiplied by zero: an overflow stays in its own row.
Segments whose adapter has no place in the workspace go to the tile loop (`tiles.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tiles import TileBackend
from .work import LoraWork, Segment
from .workspace import Place, Workspace

# Multiply-adds with zeros that cost as much as one more product, by dtype: a bf16 product of
# oneDNN has a far larger price of its own than an fp32 one of MKL (bench/LOG.md, 2026-11-21).
JOIN_MACS = {torch.bfloat16: 2_400_000, torch.float32: 150_000}


@dataclass(slots=True, eq=False)
class _Part:
    """Segments computed together."""

    members: list[tuple[Segment, Place]]
    place: slice  # rows of the workspace, from the first adapter's to the last one's
    sites: frozenset[int]  # that any of the adapters changes
    # [rows, rank rows]: whether the column is the row's own adapter's. None: one adapter.
    own_TR: Tensor | None = None
    # site -> its A, B and scales in the workspace, as they are met
    factors: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        return slice(self.members[0][0].start, self.members[-1][0].end)


class CpuBackend:
    """See the Semantics in kernels/lora/__init__.py.

    In bf16 what A gives, and its product with the scale, are rounded to bf16, as PEFT does with
    one rounding more; both products add up in fp32, and the sum with the base is rounded once.
    """

    def __init__(self, workspace: Workspace | None) -> None:
        self._workspace = workspace
        self._tiles = TileBackend()
        self._planned_for: LoraWork | None = None
        self._pool: Tensor | None = None
        self._parts: list[_Part] = []
        self._places: dict[int, Place] = {}  # of the step that the parts were made for
        self._segments: tuple[Segment, ...] = ()
        self._rest: LoraWork | None = None  # segments without a place

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """Nothing: a step is planned at its first product."""

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        workspace = self._workspace
        if workspace is None or not workspace.sites.issuperset(sites):
            self._tiles.add(hidden_TI, pool_PE, work, sites=sites, outs_TO=outs_TO)
            return
        if self._planned_for is not work:
            self._plan(workspace, pool_PE, work)
        for site, out_TO in zip(sites, outs_TO, strict=True):
            for part in self._parts:
                if site in part.sites:
                    _add_part(workspace, part, site, hidden_TI, out_TO)
        if self._rest is not None:
            self._tiles.add(hidden_TI, pool_PE, self._rest, sites=sites, outs_TO=outs_TO)

    def forget(self) -> None:
        """Pages were written: read them again before the next step."""
        self._planned_for = None
        self._segments = ()
        if self._workspace is not None:
            self._workspace.forget()

    def _plan(self, workspace: Workspace, pool_PE: Tensor, work: LoraWork) -> None:
        if self._pool is not pool_PE:
            self.forget()
            self._pool = pool_PE
        wanted = {segment.slot: factors for segment, factors in work.live}
        places = workspace.hold(pool_PE, work.table, wanted)
        self._planned_for = work
        rest = [segment for segment, _ in work.live if segment.slot not in places]
        self._rest = LoraWork(work.table, rest) if rest else None
        # Decode steps are alike as long as nobody comes or goes.
        if work.segments == self._segments and _are_same(places, self._places):
            return
        worth = JOIN_MACS.get(pool_PE.dtype, 0) // workspace.mean_width
        self._parts = list(_make_parts(work, places, worth))
        self._segments, self._places = work.segments, places


def _add_part(
    workspace: Workspace, part: _Part, site: int, hidden_TI: Tensor, out_TO: Tensor
) -> None:
    found = part.factors.get(site)
    if found is None:
        found = part.factors[site] = workspace.rows(site, part.place)
    a_RI, b_RO, scale_R = found
    hidden, out = hidden_TI[part.rows], out_TO[part.rows]
    shrunk = torch.mm(hidden, a_RI.t())
    if part.own_TR is not None:
        shrunk = torch.where(part.own_TR, shrunk, 0)
    out.addmm_(shrunk.mul_(scale_R), b_RO)


def _are_same(places: Mapping[int, Place], others: Mapping[int, Place]) -> bool:
    return places.keys() == others.keys() and all(
        place is others[slot] for slot, place in places.items()
    )


def _make_parts(work: LoraWork, places: Mapping[int, Place], worth: int) -> Iterator[_Part]:
    """Neighbours together, while the zeros of that (rows x rank rows) are `worth` it."""
    members: list[tuple[Segment, Place]] = []
    for segment, _ in work.live:
        place = places.get(segment.slot)
        if place is None:
            continue
        own = (segment.end - segment.start) * (place.end_row - place.row)
        if members:
            apart = _area(members) + own
            if _area([*members, (segment, place)]) - apart > worth:
                yield _part(members)
                members = []
        members.append((segment, place))
    if members:
        yield _part(members)


def _span(members: Sequence[tuple[Segment, Place]]) -> slice:
    return slice(min(place.row for _, place in members), max(place.end_row for _, place in members))


def _area(members: Sequence[tuple[Segment, Place]]) -> int:
    span = _span(members)
    return (members[-1][0].end - members[0][0].start) * (span.stop - span.start)


def _part(members: list[tuple[Segment, Place]]) -> _Part:
    span = _span(members)
    part = _Part(members, span, frozenset().union(*(place.factors for _, place in members)))
    if len(members) > 1:
        rows = part.rows
        own_TR = torch.zeros(rows.stop - rows.start, span.stop - span.start, dtype=torch.bool)
        for segment, place in members:
            own_TR[
                segment.start - rows.start : segment.end - rows.start,
                place.row - span.start : place.end_row - span.start,
            ] = True
        part.own_TR = own_TR
    return part
