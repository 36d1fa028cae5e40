"""Slips: what the kernels are told of an errand, in memory that the device reads by itself.

Owns the form of a slip: whole numbers in one row of a tensor in mapped host memory, written before
the launches that name the row, so that a launch has no numbers of its own and copies none. Places
are addresses, since every helper's mailbox is memory of its own. Kernels import the places as
constants. Knows no processes and no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A slip's first words.
HEAD_LEN = 8
EPOCH, SINCE, START, NUM_SHARDS, OUTCOME = range(5)
# Then so many for each shard; of the answers one for each site.
SHARD_LEN = 16
FIRST, NUM_ROWS, INPUT, GO, DONE, ANSWERS = range(6)
MAX_SITES = SHARD_LEN - ANSWERS
MAX_SHARDS = 32
SLIP_LEN = HEAD_LEN + MAX_SHARDS * SHARD_LEN
DATA_ALIGN_BYTES = 16  # of rows and answers


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows that one helper has. Places are addresses that host and device share."""

    first: int  # of the errand's rows
    num_rows: int
    input: int  # where the rows go: dense, in the model's dtype
    go: int  # of a word that gets the epoch once they lie there
    done: int  # of a word that gets the epoch once they are answered, minus that if never
    answers: tuple[int, ...]  # of each site: where its answer lies, dense rows of its width


@dataclass(frozen=True, slots=True)
class Slip:
    """One errand: rows [start, ...) of the step, cut into shards."""

    epoch: int  # above 0, never used twice
    since: int  # an earlier errand from this epoch on that was lost makes this one lost, too
    start: int
    shards: tuple[Shard, ...]

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)


def write_slip(slips: Tensor, number: int, slip: Slip) -> None:
    """Into that row of `slips`, int64 [any, SLIP_LEN] on the host.

    Raises:
        ValueError: names what does not fit: shards, sites, an epoch, a place between two words.
    """
    if not 0 < slip.since <= slip.epoch:
        raise ValueError(f"epoch is {slip.epoch} and since {slip.since}; 0 < since <= epoch")
    if not 1 <= len(slip.shards) <= MAX_SHARDS:
        raise ValueError(f"{len(slip.shards)} shards; a slip has room for 1 to {MAX_SHARDS}")
    words = np.zeros(HEAD_LEN + len(slip.shards) * SHARD_LEN, dtype=np.int64)
    words[EPOCH], words[SINCE], words[START] = slip.epoch, slip.since, slip.start
    words[NUM_SHARDS] = len(slip.shards)
    end = 0
    for i, shard in enumerate(slip.shards):
        _check(shard, end)
        end += shard.num_rows
        entry = words[HEAD_LEN + i * SHARD_LEN :]
        entry[:ANSWERS] = shard.first, shard.num_rows, shard.input, shard.go, shard.done
        entry[ANSWERS : ANSWERS + len(shard.answers)] = shard.answers
    slips[number, : len(words)] = torch.from_numpy(words)


def outcome(slips: Tensor, number: int) -> int:
    """What became of an errand, once the device is past it: its epoch, or minus that: lost; 0: the
    device never came there.
    """
    return int(slips[number, OUTCOME])


def _check(shard: Shard, end: int) -> None:
    if shard.first != end or shard.num_rows < 0:
        raise ValueError(f"a shard has {shard.num_rows} rows from {shard.first}; {end} come before")
    if len(shard.answers) > MAX_SITES:
        raise ValueError(f"{len(shard.answers)} sites; a slip has room for {MAX_SITES}")
    if any(place % DATA_ALIGN_BYTES for place in (shard.input, *shard.answers)):
        raise ValueError(f"{shard}: rows and answers begin at multiples of {DATA_ALIGN_BYTES}")
    if shard.go % 8 or shard.done % 8:
        raise ValueError(f"{shard}: words begin at multiples of 8 bytes")
