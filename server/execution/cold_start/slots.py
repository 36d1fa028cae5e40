"""Slots whose pages are on their way, and the steps that use them.

Owns who is cold: from the moment a load is open until the slot means an image that lies in the pool
as a whole, or nothing. Closes the hand-over to helpers before either. Knows no pages' owners and no
requests. Used by paged_model.py alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ....adapters.host_tier import HeldImage
from ....adapters.image import ImageLayout
from ....kernels.lora import Segment
from ...scheduling.starts import Way
from .handover import Handover
from .mailbox import MAX_SITES
from .step import ColdEnd, ColdRooms, ColdStep

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cold:
    """What a slot will be."""

    image: HeldImage
    pages: tuple[int, ...]

    @property
    def layout(self) -> ImageLayout:
        return self.image.layout


class ColdSlots:
    """Of one pool. `layer_of`: of each site; `siblings`: sites that are given one input, in the
    order of their turns.
    """

    def __init__(self, layer_of: Sequence[int], siblings: Sequence[Sequence[int]] = ()) -> None:
        self._layer_of = tuple(layer_of)
        self._behind = {
            site: tuple(group[place:])
            for group in siblings
            for place, site in enumerate(group[:MAX_SITES], start=1)
        }
        self._rooms: ColdRooms | None = None
        self._slots: dict[int, Cold] = {}  # by slot
        self._helped: dict[int, Handover] = {}  # by slot: where it is open
        self._step: ColdStep | None = None  # the last one, until it is asked how it ended

    def use(self, rooms: ColdRooms) -> None:
        """Before the first slot is opened."""
        self._rooms = rooms

    def open(self, slot: int, image: HeldImage, pages: Sequence[int]) -> None:
        """From now on the slot is cold. Helpers are told at the first step that asks them: most
        loads are waited for, or streamed.

        Raises:
            ValueError: there are no rooms for cold steps.
        """
        if self._rooms is None:
            raise ValueError(f"slot {slot} cannot be cold: this runner was given no cold rooms")
        self.close(slot)
        self._slots[slot] = Cold(image, tuple(pages))

    def close(self, slot: int) -> Cold | None:
        """What it was, if it was cold: no helper reads its image any more."""
        helped = self._helped.pop(slot, None)
        if helped is not None:
            helped.close(slot)
        return self._slots.pop(slot, None)

    def has(self, slots: Iterable[int]) -> bool:
        """Whether one of these is cold."""
        return bool(self._slots) and any(slot in self._slots for slot in slots)

    def split(self, segments: Sequence[Segment]) -> tuple[Sequence[Segment], Sequence[Segment]]:
        """Warm ones and cold ones."""
        if not self._slots:
            return segments, ()
        warm = [segment for segment in segments if segment.slot not in self._slots]
        return warm, [segment for segment in segments if segment.slot in self._slots]

    def begin(self, segments: Sequence[Segment], ways: Mapping[int, Way]) -> ColdStep | None:
        """A step of these; None: all of them are warm, whatever was planned.

        Raises:
            ValueError: rows of a cold slot are to run as if it were warm.
        """
        self._step = None
        slots = {segment.slot for segment in self.split(segments)[1]}
        if not slots:
            return None
        for slot in slots - ways.keys():
            raise ValueError(f"slot {slot} is cold: its rows need a way, and have none")
        assert self._rooms is not None, "a slot was opened without rooms"
        cold = {slot: ways[slot] for slot in slots}
        for slot, way in cold.items():
            if way is Way.ASSIST:
                self._let_help(slot, self._rooms.handover)
        self._step = ColdStep(cold, self._rooms, layer_of=self._layer_of, behind=self._behind)
        return self._step

    def _let_help(self, slot: int, handover: Handover | None) -> None:
        """Helpers see the slab alone: of an image elsewhere they are told nothing."""
        image = self._slots[slot].image
        if handover is None or slot in self._helped or image.is_loose:
            return
        try:
            handover.open(slot, image)
        except ValueError as error:  # nobody can be asked for it then, and it alone is lost
            _log.warning("helpers cannot be told of slot %d: %s", slot, error)
        else:
            self._helped[slot] = handover

    def end(self) -> ColdEnd:
        """Of the step before; the device has computed it by now."""
        step, self._step = self._step, None
        return ColdEnd() if step is None else step.end()
