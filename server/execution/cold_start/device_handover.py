"""The hand-over on a GPU: the device sends the rows and waits for the answers by itself.

Owns an errand's way there: a slip for the kernels (kernels/handover), an entry in each helper's
mailbox that lets it begin once the device has written the rows, and, after the step, which slots
were lost. The host never looks during a step, and launches ahead of the device. The helpers are the
CPU's (helpers.py, crew.py). Knows no steps and no plans. Called by the thread that launches steps.

Whose bytes are whose follows from the stream's order: rows of a newer errand are written after the
older one's answers were added. That breaks where an answer was not waited for to its end, so from
an errand that is lost everything asked after it in that step is lost as well, and nobody is asked
again before all helpers have passed what they were asked until then.
"""

from __future__ import annotations

import platform
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ....adapters.image import Site
from ....kernels.handover import (
    MAX_SHARDS,
    MAX_SITES,
    Post,
    Shard,
    Slip,
    await_add,
    make_post,
    outcome,
    send_rows,
)
from ...clock import Clock
from .board import LandedBoard
from .crew import ANSWER_PATIENCE_S, SharedCells
from .device_memory import MappedMemory, check_host
from .handover import Errand, Ticket
from .helpers import SPARE, Helpers, widest_row
from .mailbox import DATA_AT, Entry, Kind, answer_places, done_at, go_at
from .member import Member
from .room import Stretch
from .shards import split_rows
from .staff import Spawn, spawn_helper

NUM_SLIPS = 1024  # errands of one step; what is more is not assisted
# Of one helper's mailbox, all of it pinned: 64 MiB hold 700 rows of Llama-3.1-8B's MLP in bf16.
MAX_DATA_BYTES = 64 << 20
# A look over the bus takes about a microsecond. An estimate: no bus was timed, so that a patience
# of one second may be half of one or three.
LOOKS_PER_S = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """One helper's part of an errand."""

    member: Member
    stretch: Stretch  # its bytes in the mailbox
    first: int  # of the errand's rows
    num_rows: int
    answer_at: int


@dataclass(slots=True, eq=False)
class _Asked:
    """An errand since the last `lost`."""

    errand: Errand
    slip: Slip
    number: int  # of the slip
    present: tuple[int, ...]  # which of the errand's sites the adapter has
    shares: list[_Share]  # empty: the stream's next errand may have their bytes
    is_awaited: bool = False


class DeviceHelpers(Helpers):
    """A `Handover` for steps on `device`; on a CPU its kernels are interpreted, for tests.

    Raises:
        OSError: the system has no memory or no processes for the helpers.
        RuntimeError: CUDA cannot map their memory, or the processor is none for it.
    """

    def __init__(
        self,
        cells: SharedCells,
        sites: Sequence[Site],
        cores: Sequence[int],
        *,
        num_layers: int,
        max_tokens: int,
        device: torch.device,
        board: LandedBoard | None = None,
        patience_s: float = ANSWER_PATIENCE_S,
        looks_per_s: float = LOOKS_PER_S,
        num_slips: int = NUM_SLIPS,
        clock: Clock | None = None,
        spawn: Spawn = spawn_helper,
    ) -> None:
        if device.type == "cuda":
            check_host(platform.machine())
        body = [site for site in sites if site.layer < num_layers]
        row_bytes = max(1, widest_row(body) * cells.memory.element_size())
        super().__init__(
            cells,
            sites,
            cores[:MAX_SHARDS],
            num_layers=num_layers,
            max_tokens=max(1, min(max_tokens, MAX_DATA_BYTES // (SPARE * row_bytes))),
            board=board,
            patience_s=patience_s,
            clock=clock,
            spawn=spawn,
        )
        self._device = device
        # Of a step, at its helpers' words: until one of its errands is lost.
        self.max_looks = max(1, int(patience_s * looks_per_s))
        self._asked: list[_Asked] = []
        self._waits = False
        self._since = self.crew.next_epoch()  # of this step's errands none is older
        # Each helper's last entry of a step that lost something: until all have passed theirs,
        # nobody is asked.
        self._behind: dict[Member, tuple[int, int]] = {}
        self._last: dict[Member, tuple[int, int]] = {}  # of this step: (number, epoch)
        self._post_room: Post = make_post(num_slips, device)
        self._mapped: list[MappedMemory] = []
        try:
            self._mapped.append(MappedMemory(self._post_room.slips, device))
            for mailbox in self.crew.mailboxes:
                self._mapped.append(MappedMemory(mailbox.memory, device))
        except BaseException:
            self.stop()
            raise

    def send(self, errand: Errand, hidden_TI: Tensor) -> Ticket | None:
        """Raises ValueError: the rows are not those of these sites."""
        crew = self.crew
        crew.tend()
        opening, members = crew.opening(errand.slot), crew.able(errand.slot)
        is_full = len(self._asked) >= len(self._post_room.slips) or len(errand.sites) > MAX_SITES
        if opening is None or not members or is_full or not self.have_passed():
            return None
        if self._waits:
            hidden_TI = hidden_TI.to(self._device)
        self._check(errand, hidden_TI)
        present = tuple(i for i, site in enumerate(errand.sites) if site in opening.factors)
        if not present:
            return None
        sites = tuple(errand.sites[i] for i in present)
        shares = self._take(errand, members, sites, hidden_TI.shape[1])
        if shares is None:
            return None
        # All helpers of an errand have its epoch: one word less for the kernels to compare with.
        epoch, shards = crew.next_epoch(), list[Shard]()
        for share in shares:
            entry = Entry(
                Kind.ERRAND,
                epoch,
                errand.slot,
                opening=opening.number,
                input_at=share.stretch.start,
                answer_at=share.answer_at,
                num_rows=share.num_rows,
                ready_site=self._ready_site(errand.slot, sites[0]),
                awaits_go=True,
                sites=sites,
            )
            number = share.member.post(entry)
            self._last[share.member] = (number, epoch)
            shards.append(self._shard(share, number, sites))
        slip = Slip(epoch, self._since, errand.start, tuple(shards))
        asked = _Asked(errand, slip, len(self._asked), present, shares)
        self._asked.append(asked)
        send_rows(hidden_TI, self._post_room, number=asked.number, slip=slip)
        return _DeviceTicket(self, asked)

    def add(self, asked: _Asked, outs_TO: Sequence[Tensor]) -> bool:
        """A ticket's. The device adds or does not; `lost` tells."""
        if len(outs_TO) != len(asked.errand.sites):
            raise ValueError(f"outs are {len(outs_TO)}; sites are {len(asked.errand.sites)}")
        asked.is_awaited = True
        outs = [outs_TO[i].to(self._device) for i in asked.present]
        await_add(
            outs,
            self._post_room,
            number=asked.number,
            slip=asked.slip,
            max_polls=self.max_looks,
        )
        self._give(asked)
        if not self._waits:
            return True
        self._settle()
        return outcome(self._post_room.slips, asked.number) == asked.slip.epoch

    def lost(self) -> frozenset[int]:
        """The step is over on the device. No ticket from before this call is added after it."""
        lost: set[int] = set()
        for asked in self._asked:
            is_answered = outcome(self._post_room.slips, asked.number) == asked.slip.epoch
            if asked.is_awaited and not is_answered:
                lost.add(asked.errand.slot)
                self.crew.num_lost += 1
            if not is_answered:
                self._behind.update(self._last)
            self._give(asked)
        self._asked.clear()
        self._last.clear()
        self._since = self.crew.next_epoch()
        return frozenset(lost)

    def stop(self) -> None:
        """The device is done with its last step."""
        self._settle()
        while self._mapped:
            self._mapped.pop().close()
        super().stop()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """For a calibration: rows and outs may lie on the host, and `add` waits for the device and
        says whether it added. A copy to the device and back is timed with it, then.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _take(
        self, errand: Errand, members: Sequence[Member], sites: Sequence[int], in_width: int
    ) -> list[_Share] | None:
        """Bytes in every helper's mailbox, or in none."""
        item_bytes = self.crew.dtype.itemsize
        widths = tuple(self.crew.sites[site].out_width for site in sites)
        cuts = split_rows(errand.end - errand.start, len(members), min_rows=self.min_tokens)
        shares: list[_Share] = []
        for member, (first, end) in zip(members, cuts, strict=False):
            input_bytes = answer_places(end - first, (in_width,), item_bytes)[-1]
            answer_bytes = answer_places(end - first, widths, item_bytes)[-1]
            stretch = member.room.take(input_bytes + answer_bytes)
            if stretch is None:
                for share in shares:
                    share.member.room.give(share.stretch)
                return None
            answer_at = stretch.start + input_bytes
            shares.append(_Share(member, stretch, first, end - first, answer_at))
        return shares

    def _shard(self, share: _Share, number: int, sites: Sequence[int]) -> Shard:
        start = self._mapped[1 + share.member.seat].address
        widths = tuple(self.crew.sites[site].out_width for site in sites)
        *places, _ = answer_places(share.num_rows, widths, self.crew.dtype.itemsize)
        return Shard(
            share.first,
            share.num_rows,
            input=start + DATA_AT + share.stretch.start,
            go=start + go_at(number),
            done=start + done_at(number),
            answers=tuple(start + DATA_AT + share.answer_at + place for place in places),
        )

    def _give(self, asked: _Asked) -> None:
        for share in asked.shares:
            share.member.room.give(share.stretch)
        asked.shares.clear()

    def have_passed(self) -> bool:
        """Whether everybody is past what was lost; one that has ended writes nothing any more."""
        passed = [
            member
            for member, (number, epoch) in self._behind.items()
            if member.is_over or abs(member.mailbox.done(number)) == epoch
        ]
        for member in passed:
            del self._behind[member]
        return not self._behind

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _DeviceTicket:
    """A `Ticket`."""

    def __init__(self, helpers: DeviceHelpers, asked: _Asked) -> None:
        self._helpers, self._asked = helpers, asked

    def add(self, outs_TO: Sequence[Tensor]) -> bool:
        return self._helpers.add(self._asked, outs_TO)
