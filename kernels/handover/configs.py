"""How the hand-over's kernels are cut: one table, three readers.

`launch.py` launches from it, the compile check walks it (`compile_cases`), the bench sweeps it. A
copy over a bus needs few programs: what is asked for at once is bounded by the bus, and while one
of them waits for helpers nothing else of the step could run anyway. Imports no Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..cases import CompileCase

VECTOR_BYTES = 16  # of the widest load of one thread


@dataclass(frozen=True, slots=True)
class SendConfig:
    """One shape of `send_rows`."""

    block: int  # elements at a time
    num_warps: int
    max_programs: int  # a guess: 64 of them have 128 KiB on their way at once


@dataclass(frozen=True, slots=True)
class AddConfig:
    """One shape of `add_answer`."""

    block_t: int  # rows
    block_o: int  # columns
    num_warps: int
    max_programs: int


# By the bytes of an element: a thread moves 16 bytes at a time in each of them.
SEND = {2: SendConfig(1024, 4, 64), 4: SendConfig(512, 4, 64)}
ADD = {2: AddConfig(4, 256, 4, 64), 4: AddConfig(4, 128, 4, 64)}


def compile_cases() -> Iterator[CompileCase]:
    """Every entry of the tables, through the very calls that a launch would make."""
    from .compiled import cases  # loads Triton

    yield from cases()
