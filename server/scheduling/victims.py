"""Rows that go by one plan, and what becomes of their pages: free, or cached as far as nobody
needs them.

Pages that the prefix cache does not know are free at once. Blocks that nobody else holds can be
had too; what is left of them in the end stays, the beginnings of the oldest victims first, since
those come back first. Knows no budgets. Used by draft.py.
"""

from __future__ import annotations

from typing import NamedTuple

from .blocks import Blocks
from .facts import Row
from .records import PlannedKeep


class _Victim(NamedTuple):
    row: int
    num_full: int  # pages whose tokens are all computed, that may be cached
    num_held: int  # of its pages, those that are blocks
    loose: tuple[int, ...]  # of those blocks, the last ones, which can go with it


class Victims:
    def __init__(self, blocks: Blocks, tokens_per_page: int) -> None:
        self._blocks, self._tokens_per_page = blocks, tokens_per_page
        self._gone: list[_Victim] = []  # in the order in which their blocks were had
        self._expired: list[Row] = []  # that hold blocks

    def preempt(self, fact: Row) -> int:
        """Returns the pages that can be had."""
        num_full = fact.start // self._tokens_per_page
        return self._release(fact, num_full) + fact.num_pages - self._gone[-1].num_held

    def expire(self, fact: Row) -> int:
        """Returns the pages that are free; its blocks stay, unless they are reclaimed."""
        num_held = self._blocks.num_held(fact.row)
        if num_held:
            self._expired.append(fact)
        return fact.num_pages - num_held

    def reclaim(self) -> int:
        """Blocks of expired rows, where somebody would be preempted else; 0: there are none."""
        num_pages = 0
        while self._expired and not num_pages:
            num_pages = self._release(self._expired.pop(), 0)
        return num_pages

    def _release(self, fact: Row, num_full: int) -> int:
        loose = self._blocks.release(fact.row)
        num_held = self._blocks.num_held(fact.row)
        self._gone.append(_Victim(fact.row, num_full, num_held, loose))
        return len(loose)

    def settle(self, spare_pages: int) -> tuple[tuple[PlannedKeep, ...], list[int]]:
        """What stays, of so many pages that nobody took in the end; and which blocks do not."""
        keeps: list[PlannedKeep] = []
        evicted: list[list[int]] = []
        for victim in reversed(self._gone):
            stays = min(len(victim.loose), spare_pages)
            spare_pages -= stays
            evicted.append(list(reversed(victim.loose[stays:])))
            new = min(victim.num_full - victim.num_held, spare_pages)
            if stays == len(victim.loose) and new > 0:
                keeps.append(PlannedKeep(victim.row, victim.num_held + new))
                spare_pages -= new
        return tuple(keeps), [block_id for one in reversed(evicted) for block_id in one]
