"""The crew: helpers that know which slots are open, whatever way rows go to them.

Owns the memory that they share, the ledger's books and the rule that a slot is closed only once
nobody reads its image: who does not say so in time is killed. Does not know rows and answers
(helpers.py on a CPU, device_handover.py on a GPU) and no processes (staff.py does). For the thread
that launches steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ....adapters.host_tier import HeldImage
from ....adapters.image import Site, tile_cols
from ....kernels.lora import FactorTiles, num_tiles
from ...clock import Clock, MonotonicClock
from ..placing import place_tiles
from .helper import Post
from .ledger import packed, put
from .mailbox import Entry, Kind, Mailbox, mailbox_bytes
from .member import Member
from .room import Room, Stretch
from .shared import Bell, SharedFd, make_memory, map_memory
from .staff import Spawn, Staff, spawn_helper

LEDGER_BYTES = 64 << 20  # 8 M tiles; costs memory where it is used
ANSWER_PATIENCE_S = 1.0  # with any answer


@dataclass(frozen=True, slots=True)
class SharedCells:
    """The host tier's slab: memory [num_cells, page_elements] that other processes map."""

    fd: int
    memory: Tensor


@dataclass(frozen=True, slots=True)
class HelperStats:
    num_helpers: int  # asked for
    num_up: int  # now
    num_restarts: int
    num_lost: int  # errands whose answer was not there in time


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """A slot that helpers may be asked for."""

    number: int  # never used twice
    factors: dict[int, FactorTiles]  # placed on the slab's cells
    page: Stretch  # of the ledger


class Crew:
    """One helper for each of `cores`, with a mailbox of `data_bytes` each.

    Raises:
        OSError: the system has no memory or no processes for them.
    """

    def __init__(
        self,
        cells: SharedCells,
        sites: Sequence[Site],
        cores: Sequence[int],
        *,
        data_bytes: int,
        patience_s: float = ANSWER_PATIENCE_S,
        clock: Clock | None = None,
        spawn: Spawn = spawn_helper,
    ) -> None:
        self.sites, self.cores, self.cells = tuple(sites), tuple(cores), cells
        self.dtype, self.patience_s = cells.memory.dtype, patience_s
        self.num_lost = 0
        self._clock = clock or MonotonicClock()
        self._page_elements = cells.memory.shape[1]
        self._openings: dict[int, Opening] = {}  # by slot
        self._epoch = self._opening = 0  # given out last
        self._ledger_fd = make_memory("lorry-ledger", LEDGER_BYTES)
        self._ledger = map_memory(self._ledger_fd)
        self._ledger_room = Room(LEDGER_BYTES)
        size = mailbox_bytes(data_bytes)
        self._mail_fds = [make_memory("lorry-mailbox", size) for _ in cores]
        # They stay where they are for as long as the crew lives, whoever reads them.
        self.mailboxes = [Mailbox(map_memory(fd)) for fd in self._mail_fds]
        self._staff = Staff(
            self.mailboxes,
            self._make_post,
            next_epoch=self.next_epoch,
            clock=self._clock,
            spawn=spawn,
        )

    @property
    def members(self) -> list[Member]:
        """Those that are up or about to be."""
        return self._staff.members

    @property
    def pids(self) -> list[int | None]:
        """By seat; None: nobody sits there now."""
        return self._staff.pids

    def stats(self) -> HelperStats:
        staff = self._staff
        return HelperStats(len(self.cores), staff.num_up, staff.num_restarts, self.num_lost)

    def await_up(self, timeout_s: float) -> int:
        """How many are up once all are, those that are started again too, or the time is over."""
        end_s = self._clock.now_s() + timeout_s
        self.tend()
        while (left_s := end_s - self._clock.now_s()) > 0 and self._staff.await_change(left_s):
            self.tend()
        return self._staff.num_up

    def tend(self) -> None:
        """Look at everybody; who has just come up is told what is open."""
        for member in self._staff.tend():
            for slot, opening in self._openings.items():
                self._tell(member, slot, opening)

    def open(self, slot: int, image: HeldImage) -> bool:
        """Whether helpers may be asked for it: not for an image that they cannot map.

        Raises:
            ValueError: the layout is not one for these sites and cells.
        """
        self.tend()
        self.close(slot)
        if image.is_loose or image.memory.data_ptr() != self.cells.memory.data_ptr():
            return False
        factors = place_tiles(image.layout, image.cells, self._page_elements)
        self._check(factors)
        numbers = packed(factors)
        page = self._ledger_room.take(numbers.nbytes)
        if page is None:
            return False
        put(self._ledger, page.start, numbers)
        self._opening += 1
        self._openings[slot] = opening = Opening(self._opening, factors, page)
        for member in self.members:
            self._tell(member, slot, opening)
        return True

    def close(self, slot: int) -> None:
        """Returns when nobody reads the slot's image; who does not answer is killed."""
        opening = self._openings.pop(slot, None)
        if opening is None:
            return
        asked: list[tuple[Member, int, int]] = []
        for member in self.members:
            if member.openings.pop(slot, None) is None:
                continue
            member.look()
            if member.can_post:
                epoch = self.next_epoch()
                asked.append((member, member.post(Entry(Kind.CLOSE, epoch, slot)), epoch))
            else:
                self._staff.put_down(member)
        are_there = self.await_answers(asked, self.patience_s)
        for (member, _, _), is_there in zip(asked, are_there, strict=True):
            if not is_there:
                self._staff.put_down(member)
        self._ledger_room.give(opening.page)
        self.tend()

    def opening(self, slot: int) -> Opening | None:
        return self._openings.get(slot)

    def able(self, slot: int) -> list[Member]:
        """Helpers that may be asked for a slot now; which one is the first depends on the slot, so
        that the small errands of many do not all go to one.
        """
        opening = self._openings.get(slot)
        if opening is None:
            return []
        able = [
            member
            for member in self.members
            if member.is_up
            and member.can_post
            and not member.is_late
            and member.openings.get(slot) == opening.number
        ]
        turn = slot % max(1, len(able))
        return able[turn:] + able[:turn]

    def await_answers(
        self, asked: Sequence[tuple[Member, int, int]], patience_s: float
    ) -> list[bool]:
        """Of each (helper, entry, epoch) whether it was answered: one patience for all of them."""
        end_s = self._clock.now_s() + patience_s
        return [
            member.await_answer(number, epoch, max(0.0, end_s - self._clock.now_s()))
            for member, number, epoch in asked
        ]

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def stop(self) -> None:
        """End them all; nothing else may be called afterwards."""
        self._staff.stop()
        self._openings.clear()
        for shared in (self._ledger_fd, *self._mail_fds):
            os.close(shared.fd)

    def _tell(self, member: Member, slot: int, opening: Opening) -> None:
        if member.is_up and member.can_post:
            epoch, place = self.next_epoch(), opening.page.start
            entry = Entry(Kind.OPEN, epoch, slot, opening=opening.number, input_at=place)
            member.post(entry)
            member.openings[slot] = opening.number

    def _make_post(self, seat: int, bell: Bell, answer_bell: Bell) -> Post:
        return Post(
            core=self.cores[seat],
            widths=tuple((site.in_width, site.out_width) for site in self.sites),
            tile_cols=tile_cols(self._page_elements),
            dtype=str(self.dtype).removeprefix("torch."),
            mailbox=self._mail_fds[seat],
            ledger=self._ledger_fd,
            cells=SharedFd(self.cells.fd),
            bell=bell.shared,
            answer_bell=answer_bell.shared,
        )

    def _check(self, factors: dict[int, FactorTiles]) -> None:
        cols = tile_cols(self._page_elements)
        for index, tiles in factors.items():
            if not 0 <= index < len(self.sites):
                raise ValueError(f"site is {index}; there are {len(self.sites)}")
            site = self.sites[index]
            parts = ((tiles.a_offsets, site.in_width), (tiles.b_offsets, site.out_width))
            for offsets, width in parts:
                needed = num_tiles(tiles.rank, width, cols)
                if len(offsets) != needed:
                    raise ValueError(
                        f"site {index}: a factor of rank {tiles.rank} has {len(offsets)} tiles; "
                        f"{needed} are needed"
                    )
