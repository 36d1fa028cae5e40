"""The hand-over on a CPU: rows copied into mailboxes, answers waited for and added.

Owns an errand's way: shares of its rows for the helpers that are up, one entry each, and the ticket
that takes their answers, all or none. A helper that did not answer in time is asked nothing more
until it has passed what was given up. Knows no steps and no plans. After CaraServe's CPU-assisted
prefill; the processes are crew.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ....adapters.host_tier import HeldImage
from ....adapters.image import Site
from ...clock import Clock
from .board import LandedBoard
from .crew import ANSWER_PATIENCE_S, Crew, HelperStats, SharedCells
from .handover import Errand, Ticket
from .mailbox import MAX_SITES, Entry, Kind, answer_places
from .member import Member
from .room import Stretch
from .shards import split_rows
from .staff import Spawn, spawn_helper

MAX_TICKETS = 64  # that are kept in mind, before those that are done are forgotten
SPARE = 2  # mailboxes hold so many times the rows of the largest step: some may be given up


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """One helper's part of an errand."""

    member: Member
    number: int  # of its entry
    epoch: int
    stretch: Stretch  # its bytes in the mailbox
    answer_at: int
    start: int  # rows [start, end) of the step's
    end: int


class Helpers:
    """A `Handover`. `sites`: all of the base's, of which those behind the last of `num_layers`
    decoder layers are no errand's; `max_tokens`: of a step. With a `board` helpers lay out the next
    layer ahead once it is in host memory, without one the rest of a layer only.

    Raises:
        OSError: the system has no memory or no processes for them.
    """

    def __init__(
        self,
        cells: SharedCells,
        sites: Sequence[Site],
        cores: Sequence[int],
        *,
        num_layers: int,
        max_tokens: int,
        board: LandedBoard | None = None,
        patience_s: float = ANSWER_PATIENCE_S,
        clock: Clock | None = None,
        spawn: Spawn = spawn_helper,
    ) -> None:
        body = [site for site in sites if site.layer < num_layers]
        data_bytes = SPARE * max_tokens * widest_row(body) * cells.memory.element_size()
        self.crew = Crew(
            cells,
            sites,
            cores,
            data_bytes=data_bytes,
            patience_s=patience_s,
            clock=clock,
            spawn=spawn,
        )
        self.min_tokens = 1  # rows that are worth a helper: speed.py sets it
        self._board = board
        self._ends = _layer_ends(sites)
        self._lost: set[int] = set()
        self._tickets: list[_Errand] = []  # since the last `lost`

    def open(self, slot: int, image: HeldImage) -> None:
        self.crew.open(slot, image)

    def close(self, slot: int) -> None:
        self.crew.close(slot)

    def send(self, errand: Errand, hidden_TI: Tensor) -> Ticket | None:
        """Raises ValueError: the rows are not those of these sites."""
        crew = self.crew
        crew.tend()
        opening, members = crew.opening(errand.slot), crew.able(errand.slot)
        if opening is None or not members or len(errand.sites) > MAX_SITES:
            return None
        self._check(errand, hidden_TI)
        present = [idx for idx, site in enumerate(errand.sites) if site in opening.factors]
        sites = tuple(errand.sites[idx] for idx in present)
        num_rows = errand.end - errand.start
        ticket = _Errand(self, errand, present, [crew.sites[site].out_width for site in sites])
        cuts = split_rows(num_rows, len(members), min_rows=self.min_tokens) if sites else []
        for member, (start, end) in zip(members, cuts, strict=False):
            rows = slice(errand.start + start, errand.start + end)
            share = self._post(member, errand.slot, opening.number, sites, hidden_TI, rows)
            if share is None:
                ticket.give_up()
                return None
            ticket.shares.append(share)
        if len(self._tickets) >= MAX_TICKETS:
            self._tickets = [other for other in self._tickets if other.shares]
        self._tickets.append(ticket)
        return ticket

    def lost(self) -> frozenset[int]:
        """No ticket from before this call is added after it."""
        for ticket in self._tickets:
            ticket.give_up()
        self._tickets.clear()
        lost = frozenset(self._lost)
        self._lost.clear()
        return lost

    def stop(self) -> None:
        self.crew.stop()

    def stats(self) -> HelperStats:
        return self.crew.stats()

    def lose(self, slot: int) -> None:
        """An answer did not come."""
        self._lost.add(slot)
        self.crew.num_lost += 1

    def _post(  # noqa: PLR0917 - an entry's parts
        self,
        member: Member,
        slot: int,
        opening: int,
        sites: tuple[int, ...],
        hidden_TI: Tensor,
        rows: slice,
    ) -> _Share | None:
        dtype, num_rows = self.crew.dtype, rows.stop - rows.start
        in_width = hidden_TI.shape[1]
        widths = tuple(self.crew.sites[site].out_width for site in sites)
        input_bytes = answer_places(num_rows, (in_width,), dtype.itemsize)[-1]
        answer_bytes = answer_places(num_rows, widths, dtype.itemsize)[-1]
        stretch = member.room.take(input_bytes + answer_bytes)
        if stretch is None:
            return None
        target = member.mailbox.rows(stretch.start, num_rows, in_width, dtype)
        target.copy_(hidden_TI[rows])
        epoch, answer_at = self.crew.next_epoch(), stretch.start + input_bytes
        entry = Entry(
            Kind.ERRAND,
            epoch,
            slot,
            opening=opening,
            input_at=stretch.start,
            answer_at=answer_at,
            num_rows=num_rows,
            ready_site=self._ready_site(slot, sites[0]),
            sites=sites,
        )
        number = member.post(entry)
        return _Share(member, number, epoch, stretch, answer_at, rows.start, rows.stop)

    def _ready_site(self, slot: int, site: int) -> int:
        """The first site that may not be in host memory yet. An errand says that its layer is."""
        layer = self.crew.sites[site].layer
        if (
            self._board is not None
            and layer + 1 < len(self._ends)
            and self._board.await_either(slot, layer + 1, 0.0)
        ):
            layer += 1
        return self._ends[layer]

    def _check(self, errand: Errand, hidden_TI: Tensor) -> None:
        widths = {self.crew.sites[site].in_width for site in errand.sites}
        if hidden_TI.dtype != self.crew.dtype or widths != {hidden_TI.shape[-1]}:
            raise ValueError(
                f"rows are {hidden_TI.dtype} of width {hidden_TI.shape[-1]}; sites {errand.sites} "
                f"take {self.crew.dtype} of width {sorted(widths)}"
            )
        if not 0 <= errand.start < errand.end <= hidden_TI.shape[0]:
            raise ValueError(
                f"rows [{errand.start}, {errand.end}) are none of {hidden_TI.shape[0]}"
            )


class _Errand:
    """A `Ticket`."""

    def __init__(
        self, helpers: Helpers, errand: Errand, present: list[int], widths: list[int]
    ) -> None:
        self.shares: list[_Share] = []
        self._helpers, self._errand = helpers, errand
        self._present = present  # which of the errand's sites the adapter has
        self._widths = tuple(widths)

    def add(self, outs_TO: Sequence[Tensor]) -> bool:
        if len(outs_TO) != len(self._errand.sites):
            raise ValueError(f"outs are {len(outs_TO)}; sites are {len(self._errand.sites)}")
        crew, shares = self._helpers.crew, self.shares
        # Once a helper has been late a step waits for it no more, whatever else it was sent: there
        # may be an errand for every adapter of the step behind the late one.
        patience_s = 0.0 if any(share.member.is_late for share in shares) else crew.patience_s
        are_there = crew.await_answers(
            [(share.member, share.number, share.epoch) for share in shares], patience_s
        )
        if all(are_there):
            for share in self.shares:
                self._add_share(share, outs_TO)
        else:
            self._helpers.lose(self._errand.slot)
        self.give_up()
        return all(are_there)

    def give_up(self) -> None:
        """The bytes back, once the helpers are past them."""
        for share in self.shares:
            share.member.settle(share.number, share.stretch)
        self.shares.clear()

    def _add_share(self, share: _Share, outs_TO: Sequence[Tensor]) -> None:
        dtype, num_rows = self._helpers.crew.dtype, share.end - share.start
        places = answer_places(num_rows, self._widths, dtype.itemsize)
        for idx, width, place in zip(self._present, self._widths, places, strict=False):
            mailbox = share.member.mailbox
            answer_TO = mailbox.rows(share.answer_at + place, num_rows, width, dtype)
            outs_TO[idx][share.start : share.end].add_(answer_TO)


def widest_row(sites: Sequence[Site]) -> int:
    """Elements that one row of any errand takes at most: an input, and outputs of one layer."""
    outs: dict[int, int] = {}
    for site in sites:
        outs[site.layer] = outs.get(site.layer, 0) + site.out_width
    return max((site.in_width for site in sites), default=0) + max(outs.values(), default=0)


def _layer_ends(sites: Sequence[Site]) -> list[int]:
    """By layer: the first site behind it. Sites are listed layer by layer."""
    ends = [0] * (1 + max((site.layer for site in sites), default=-1))
    for idx, site in enumerate(sites):
        ends[site.layer] = idx + 1
    for layer in range(1, len(ends)):
        ends[layer] = max(ends[layer], ends[layer - 1])
    return ends
