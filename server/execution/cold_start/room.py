"""Stretches of a memory that many share for short times: first fit, lowest place first.

Owns which bytes are taken. Knows no processes and no tensors. Used for the rows of errands in a
mailbox and for the layouts in the ledger, by the one thread that launches steps.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

ALIGN_BYTES = 64  # a cache line: no two stretches share one


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """Bytes [start, end)."""

    start: int
    end: int


class Room:
    """`num_bytes` of them, all free."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._taken: list[Stretch] = []  # ascending, few

    @property
    def taken_bytes(self) -> int:
        return sum(stretch.end - stretch.start for stretch in self._taken)

    def take(self, num_bytes: int) -> Stretch | None:
        """The lowest that is free and long enough; None: there is none."""
        size = aligned(max(1, num_bytes))
        start = 0
        for stretch in self._taken:
            if start + size <= stretch.start:
                break
            start = stretch.end
        if start + size > self.num_bytes:
            return None
        found = Stretch(start, start + size)
        insort(self._taken, found)
        return found

    def give(self, stretch: Stretch) -> None:
        """Raises ValueError: it is not taken."""
        self._taken.remove(stretch)


def aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
