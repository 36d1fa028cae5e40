"""Thousands of registered adapters against five: tokens a second of the same five, and the start.

Three servers take turns with the same load: five adapters in the store, five again (what two equal
servers differ by), and all. Then the stores are started in turns, nothing else running. Called by
command.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .asks import Prompts, serving
from .sizes import Sizes

FEW, AGAIN, MANY = "five registered", "five registered, again", "many registered"


@dataclass(frozen=True, slots=True)
class Stores:
    few: Path
    again: Path  # the same adapters, another folder: a store serves one server at a time
    many: Path


@dataclass(frozen=True, slots=True)
class Registered:
    tokens_per_s: dict[str, tuple[float, ...]]  # of FEW, AGAIN and MANY, a figure a round
    start_s: dict[str, tuple[float, ...]]  # of FEW and MANY


def measure_registered(
    base: Path,
    stores: Stores,
    names: Sequence[str],
    flags: Sequence[str],
    sizes: Sizes,
    *,
    tell: Callable[[str], None],
) -> Registered:
    """Raises:
    ServerFailed, ServerUnfit: a server does not start, stop, or stay as it was.
    NoCapacity: a request failed.
    """
    prompts, rows = Prompts(), {FEW: stores.few, MANY: stores.many, AGAIN: stores.again}
    load = [names[idx % len(names)] for idx in range(sizes.num_requests)]
    tokens: dict[str, list[float]] = {row: [] for row in rows}
    with ExitStack() as stack:
        servers = {
            row: stack.enter_context(serving(base, store, flags, prompts))
            for row, store in rows.items()
        }
        for round_idx in range(sizes.num_rounds + 1):
            for row in in_turn(list(rows), round_idx):
                tokens[row].append(servers[row].tokens_per_s(load))
                tell(f"round {round_idx}, {row}: {tokens[row][-1]:.0f} tokens/s")
    starts: dict[str, list[float]] = {FEW: [], MANY: []}
    for start_idx in range(sizes.num_starts):
        for row in in_turn(list(starts), start_idx):
            with serving(base, rows[row], flags, prompts) as server:
                starts[row].append(server.start_s)
            tell(f"start {start_idx + 1}, {row}: {starts[row][-1]:.2f} s")
    return Registered(
        {row: tuple(found[1:]) for row, found in tokens.items()},
        {row: tuple(found) for row, found in starts.items()},
    )


def in_turn(rows: Sequence[str], round_idx: int) -> list[str]:
    """Who comes first changes from round to round."""
    first = round_idx % len(rows)
    return [*rows[first:], *rows[:first]]
