"""The mailbox: what one helper is asked and what it answers, in memory that both sides map.

Owns the layout: a ring of entries of whole numbers, for each a word that says it was answered and a
word that lets it begin, and behind them the bytes for rows and answers. Entries are answered in
their order, so nothing that a late helper writes comes after the answer of a newer entry. An epoch
is never used twice: a word that holds another one than was asked for says nothing. Knows no bells
and no processes. Used by the crew, by the helper, and by kernels that write the rows on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from .room import aligned

NUM_ENTRIES = 1024  # a power of two: those of a whole step that is launched ahead
ENTRY_WORDS = 32
_FIXED_WORDS = 10
MAX_SITES = ENTRY_WORDS - _FIXED_WORDS
WORD_BYTES = 8
DONE_AT = NUM_ENTRIES * ENTRY_WORDS * WORD_BYTES  # where the words begin, in bytes
GO_AT = DONE_AT + NUM_ENTRIES * WORD_BYTES
DATA_AT = GO_AT + NUM_ENTRIES * WORD_BYTES


class Kind(IntEnum):
    HELLO = 1  # answered once the helper is up
    OPEN = 2  # a slot's layout lies in the ledger at `input_at`
    CLOSE = 3  # answered when nothing of the slot is read any more
    ERRAND = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to do. Places are bytes from the start of the data."""

    kind: Kind
    epoch: int  # 1 and up, never used twice
    slot: int = -1
    opening: int = 0  # which of the slot's openings is meant: slots are used again
    input_at: int = 0  # rows [num_rows, in_width of the sites], dense, in the model's dtype
    answer_at: int = 0  # of each site in turn rows [num_rows, its out_width]: see answer_places
    num_rows: int = 0
    ready_site: int = 0  # sites before this one are in host memory: they may be laid out ahead
    awaits_go: bool = False  # not before the go word holds the epoch: a GPU writes the rows
    sites: tuple[int, ...] = ()


class Mailbox:
    """Over memory of `mailbox_bytes`; both sides count entries from 0 for each other."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        words = memory[:DATA_AT].view(torch.int64).numpy()
        num_entry_words = NUM_ENTRIES * ENTRY_WORDS
        self._entries = words[:num_entry_words].reshape(NUM_ENTRIES, ENTRY_WORDS)
        self._done = words[num_entry_words : num_entry_words + NUM_ENTRIES]
        self._go = words[num_entry_words + NUM_ENTRIES :]
        self._data = memory[DATA_AT:]

    @property
    def data_bytes(self) -> int:
        return self._data.numel()

    def write(self, number: int, entry: Entry) -> None:
        """Over an entry that was answered NUM_ENTRIES ago."""
        numbers = (
            entry.kind,
            entry.epoch,
            entry.slot,
            entry.opening,
            entry.input_at,
            entry.answer_at,
            entry.num_rows,
            entry.ready_site,
            entry.awaits_go,
            len(entry.sites),
            *entry.sites,
        )
        if len(numbers) > ENTRY_WORDS:
            raise ValueError(f"sites are {len(entry.sites)}; an entry has room for {MAX_SITES}")
        self._entries[number % NUM_ENTRIES, : len(numbers)] = numbers

    def read(self, number: int) -> Entry:
        words: list[int] = self._entries[number % NUM_ENTRIES].tolist()
        kind, epoch, slot, opening, input_at, answer_at, num_rows, ready_site, go, count = words[
            :_FIXED_WORDS
        ]
        sites = tuple(words[_FIXED_WORDS : _FIXED_WORDS + count])
        return Entry(
            Kind(kind),
            epoch,
            slot,
            opening,
            input_at,
            answer_at,
            num_rows,
            ready_site,
            bool(go),
            sites,
        )

    def tell_done(self, number: int, epoch: int) -> None:
        """The helper's last word of an entry; a negative epoch: it was not answered."""
        self._done[number % NUM_ENTRIES] = epoch

    def done(self, number: int) -> int:
        return int(self._done[number % NUM_ENTRIES])

    def tell_go(self, number: int, epoch: int) -> None:
        """The rows are there; a negative epoch: they will never be."""
        self._go[number % NUM_ENTRIES] = epoch

    def go(self, number: int) -> int:
        return int(self._go[number % NUM_ENTRIES])

    def rows(self, at: int, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """A view [num_rows, width] of the data."""
        num_bytes = num_rows * width * dtype.itemsize
        return self._data[at : at + num_bytes].view(dtype).view(num_rows, width)


def done_at(number: int) -> int:
    """Where in the memory an entry's done word lies, in bytes: for kernels."""
    return DONE_AT + number % NUM_ENTRIES * WORD_BYTES


def go_at(number: int) -> int:
    return GO_AT + number % NUM_ENTRIES * WORD_BYTES


def answer_places(num_rows: int, widths: tuple[int, ...], item_bytes: int) -> list[int]:
    """Where each site's answer begins, in bytes from the first one's, and where the last ends."""
    places = np.cumsum([0, *(aligned(num_rows * width * item_bytes) for width in widths)])
    return places.tolist()


def mailbox_bytes(data_bytes: int) -> int:
    return DATA_AT + aligned(data_bytes)
