"""The cold rows of one step: what is asked of helpers, what is waited for, what is given up.

Owns the order of things at a site. Before the base's product, rows whose layer has not landed go to
the helpers (after CaraServe's CPU-assisted prefill); after it their answers are added, and what is
not with a helper waits for its layer and is computed on the device. A slot whose product could not
be had in time is lost for the step: nothing is waited or asked for on its behalf any more, and its
rows compute on with the base alone, to no use. Does not know requests, nor why a way was chosen.
Made by paged_model.py, one for each step with cold rows; called by the sites (context.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ....kernels.lora import FactorTiles, LoraBackend, LoraTable, LoraWork, Segment, add_lora
from ...clock import Clock, MonotonicClock
from ...scheduling.starts import Way
from .board import LandedBoard
from .handover import Errand, Handover, Ticket

PATIENCE_S = 10.0  # a step that stands still for longer serves nobody
BODY, HEAD = 0, 1  # parts of a step: all of its rows, and those whose logits are wanted


@dataclass(frozen=True, slots=True)
class ColdRooms:
    """What cold steps use beside the pool."""

    board: LandedBoard
    handover: Handover | None = None  # None: nobody helps, every cold row streams
    clock: Clock = field(default_factory=MonotonicClock)
    patience_s: float = PATIENCE_S  # that one step may wait for layers, all of its waits together


class ColdEnd(NamedTuple):
    """How a step with cold rows ended."""

    lost: frozenset[int] = frozenset()  # slots
    num_errands: int = 0
    helped_s: float = 0.0  # duration: by which errands held up whoever launches the step


class ColdStep:
    """What the parts of a step share: the ways, the patience, and who is lost."""

    def __init__(
        self,
        ways: Mapping[int, Way],
        rooms: ColdRooms,
        *,
        layer_of: Sequence[int],
        behind: Mapping[int, Sequence[int]],
    ) -> None:
        """`behind`: by a site that others follow with the same input, those."""
        self.layer_of, self.behind = layer_of, behind  # by site
        self.handover = rooms.handover
        self._ways, self._board, self._clock = ways, rooms.board, rooms.clock
        self._left_s = rooms.patience_s
        self._lost: set[int] = set()
        self._missed: set[int] = set()  # slots that helpers failed: they are not asked again
        self._num_errands, self._helped_s = 0, 0.0

    def needs_help(self, slot: int, layer: int) -> bool:
        """Whether helpers shall be asked; the layer is in host memory then."""
        if self._ways[slot] is not Way.ASSIST or slot in self._lost or slot in self._missed:
            return False
        return (
            not self._board.has_landed(slot, layer)
            and self._wait(self._board.await_either, slot, layer)
            and not self._board.has_landed(slot, layer)
        )

    def has_product(self, slot: int, layer: int, *, needed: bool) -> bool:
        """Whether the device may compute it: once the layer has landed. `needed`: it has tiles at
        these sites; what has none is never waited for.
        """
        if slot in self._lost:
            return False
        return not needed or self._wait(self._board.await_landed, slot, layer)

    def mends(self, slot: int, layer: int) -> bool:
        """Helpers did not answer, or cannot be asked. Whether the device may compute it now; else
        it is lost: its layer may be a whole load away, and everybody in the step would wait.
        """
        self._missed.add(slot)
        if not self._board.has_landed(slot, layer):
            self._lost.add(slot)
        return slot not in self._lost

    def send(self, errand: Errand, hidden_TI: Tensor) -> Ticket | None:
        """None: nobody can be asked."""
        assert self.handover is not None, "nobody helps"
        began_s = self._clock.now_s()
        ticket = self.handover.send(errand, hidden_TI)
        self._num_errands += 1
        self._helped_s += self._clock.now_s() - began_s
        return ticket

    def receive(self, ticket: Ticket, outs_TO: Sequence[Tensor]) -> bool:
        """Adds the answers. False: there are none."""
        began_s = self._clock.now_s()
        is_there = ticket.add(outs_TO)
        self._helped_s += self._clock.now_s() - began_s
        return is_there

    def end(self) -> ColdEnd:
        """The device has computed the step by now."""
        late = frozenset[int]() if self.handover is None else self.handover.lost()
        lost = frozenset(self._lost | (late & self._ways.keys()) - self._missed)
        return ColdEnd(lost, self._num_errands, self._helped_s)

    def _wait(self, wait: Callable[[int, int, float], bool], slot: int, layer: int) -> bool:
        """A step has one patience for all of its waits; what is there needs none."""
        began_s = self._clock.now_s()
        is_there = wait(slot, layer, max(self._left_s, 0.0))
        self._left_s -= self._clock.now_s() - began_s
        if not is_there:
            self._lost.add(slot)
        return is_there


class ColdProducts:
    """The device's side: products of whichever segments are computed there at a site.

    The lists of a step (`LoraBackend.prepare`) are made anew where these change between two sites:
    as layers land, and as slots are lost.
    """

    def __init__(
        self,
        backend: LoraBackend,
        table: LoraTable,
        pool_PE: Tensor,
        *,
        warm: Sequence[LoraWork | None],
    ) -> None:
        self._backend, self._table, self._pool_PE = backend, table, pool_PE
        # The warm works keep their positions; each part's cold one comes behind them.
        self._works: list[LoraWork | None] = [*warm, *([None] * len(warm))]
        self._num_parts = len(warm)

    def add(
        self,
        part: int,
        segments: Sequence[Segment],
        hidden_TI: Tensor,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        """The slots' layers have landed wherever they have tiles at these sites."""
        if not segments:
            return
        place = self._num_parts + part
        work = self._works[place]
        if work is None or work.segments != tuple(segments):
            work = self._works[place] = LoraWork(self._table, segments)
            self._backend.prepare(self._works)
        add_lora(
            hidden_TI, self._pool_PE, work, sites=sites, outs_TO=outs_TO, backend=self._backend
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Rows that are with the helpers."""

    segment: Segment
    sites: tuple[int, ...]  # that the answers are for
    ticket: Ticket


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Answers that came with those of a site before."""

    hidden_TI: Tensor  # what they are of; held, so that no other tensor can pass for it
    out_TO: Tensor  # 0 in all rows but theirs
    segments: set[Segment]

    def is_of(self, hidden_TI: Tensor) -> bool:
        own = self.hidden_TI
        return own.data_ptr() == hidden_TI.data_ptr() and own.shape == hidden_TI.shape


class ColdRows:
    """The cold rows of one part of the step. Sites that are computed one after the other from one
    input have one errand between them: on a CPU the way there and back is most of a short one.
    """

    def __init__(
        self,
        step: ColdStep,
        part: int,
        segments: Sequence[Segment],
        *,
        table: LoraTable,
        products: ColdProducts,
    ) -> None:
        self._step, self._part, self._products = step, part, products
        self._live, self._shapes = LoraWork(table, segments).live, table.sites
        self._asked: list[_Asked] = []  # at the sites that are being computed
        self._kept: dict[int, _Kept] = {}  # by a site that is still to come

    def begin(self, sites: Sequence[int], hidden_TI: Tensor) -> None:
        """Before the base's product: what helpers shall compute is on its way to them."""
        if self._step.handover is None or self._part == HEAD:
            return
        layer, answered = self._step.layer_of[sites[0]], self._answered(sites, hidden_TI)
        behind = self._step.behind.get(sites[0], ()) if len(sites) == 1 else ()
        for segment, factors in self._live:
            if segment in answered:
                continue
            if _meets(factors, sites) and self._step.needs_help(segment.slot, layer):
                own = tuple(site for site in (*sites, *behind) if site in factors)
                errand = Errand(segment.slot, own, segment.start, segment.end)
                ticket = self._step.send(errand, hidden_TI)
                if ticket is not None:
                    self._asked.append(_Asked(segment, own, ticket))
                else:
                    self._step.mends(segment.slot, layer)

    def add(self, sites: Sequence[int], hidden_TI: Tensor, outs_TO: Sequence[Tensor]) -> None:
        """After it: every cold row gets its product, or its slot is lost."""
        layer = self._step.layer_of[sites[0]]
        asked, self._asked = self._asked, []
        with_helpers = {one.segment for one in asked} | self._add_kept(sites, outs_TO)
        on_device = [
            segment
            for segment, factors in self._live
            if segment not in with_helpers
            and self._step.has_product(segment.slot, layer, needed=_meets(factors, sites))
        ]
        self._products.add(self._part, on_device, hidden_TI, sites=sites, outs_TO=outs_TO)
        # Last: by now they are there.
        missed = [one for one in asked if not self._take(one, hidden_TI, sites, outs_TO)]
        mended = [one.segment for one in missed if self._step.mends(one.segment.slot, layer)]
        self._products.add(self._part, mended, hidden_TI, sites=sites, outs_TO=outs_TO)

    def _answered(self, sites: Sequence[int], hidden_TI: Tensor) -> set[Segment]:
        """Whose answers for these sites came before. Of sites that are computed together after all,
        or from another input than was thought, all that is kept is dropped and asked for anew.
        """
        kept = [self._kept[site] for site in sites if site in self._kept]
        if len(sites) == 1 and all(one.is_of(hidden_TI) for one in kept):
            return set().union(*(one.segments for one in kept))
        if kept:
            self._kept.clear()
        return set()

    def _take(
        self,
        asked: _Asked,
        hidden_TI: Tensor,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> bool:
        """What is for sites to come is kept for them. False: there is no answer."""
        outs = dict(zip(sites, outs_TO, strict=True))
        kept = {
            site: self._room(site, hidden_TI, outs_TO[0])
            for site in asked.sites
            if site not in outs
        }
        into = [outs[site] if site in outs else kept[site].out_TO for site in asked.sites]
        if not self._step.receive(asked.ticket, into):
            return False
        for one in kept.values():
            one.segments.add(asked.segment)
        return True

    def _room(self, site: int, hidden_TI: Tensor, like_TO: Tensor) -> _Kept:
        kept = self._kept.get(site)
        if kept is None:
            out_TO = like_TO.new_zeros(like_TO.shape[0], self._shapes[site].out_width)
            kept = self._kept[site] = _Kept(hidden_TI, out_TO, set())
        return kept

    def _add_kept(self, sites: Sequence[int], outs_TO: Sequence[Tensor]) -> set[Segment]:
        """Whose answers have come before."""
        segments = set[Segment]()
        for site, out_TO in zip(sites, outs_TO, strict=True):
            kept = self._kept.pop(site, None)
            if kept is None:
                continue
            for segment in kept.segments:
                rows = slice(segment.start, segment.end)
                out_TO[rows].add_(kept.out_TO[rows])
                segments.add(segment)
        return segments


def _meets(factors: Mapping[int, FactorTiles], sites: Iterable[int]) -> bool:
    return any(site in factors for site in sites)
