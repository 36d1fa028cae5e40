"""Thousands of active adapters against five, on one server whose pool holds thirty.

The closed loops take turns on the same server: five adapters that stay in the pool, then names
drawn uniformly from all, nearly each of which has to be loaded, then the five once more (what two
equal turns differ by). All images have been in host memory before; with `--host-bytes` below their
sum most of them have left it again. Called by command.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .asks import Prompts, Serving, serving
from .registered import in_turn
from .sizes import NUM_HOT, Sizes

FEW, AGAIN, MANY = "five active", "five active, again", "many active"
SEED = 7


@dataclass(frozen=True, slots=True)
class Active:
    tokens_per_s: dict[str, tuple[float, ...]]  # of FEW, AGAIN and MANY, a figure a round
    num_loads: tuple[int, ...]  # of MANY's turns, into the pool
    host_bytes_peak: int
    host_capacity_bytes: int
    num_pages: int  # of the pool


def measure_active(
    base: Path,
    store: Path,
    names: Sequence[str],
    flags: Sequence[str],
    sizes: Sizes,
    *,
    tell: Callable[[str], None],
) -> Active:
    """Raises:
    ServerFailed, ServerUnfit: the server does not start, stop, or stay as it was.
    NoCapacity: a request failed.
    """
    draw, few = random.Random(SEED), list(names[:NUM_HOT])
    tokens: dict[str, list[float]] = {FEW: [], MANY: [], AGAIN: []}
    loads: list[int] = []
    with serving(base, store, flags, Prompts()) as server:
        server.touch(names)
        tell(f"{len(names)} adapters asked for once")
        for round_idx in range(sizes.num_rounds + 1):
            for row in in_turn(list(tokens), round_idx):
                if row == MANY:
                    load, before = draw.choices(names, k=sizes.num_requests), num_loads(server)
                    tokens[row].append(server.tokens_per_s(load))
                    loads.append(num_loads(server) - before)
                else:
                    server.touch(few)  # back in the pool, as the last ones in
                    load = [few[idx % len(few)] for idx in range(sizes.num_requests)]
                    tokens[row].append(server.tokens_per_s(load))
                tell(f"round {round_idx}, {row}: {tokens[row][-1]:.0f} tokens/s")
        stats = server.live.client.stats()
    return Active(
        {row: tuple(found[1:]) for row, found in tokens.items()},
        tuple(loads[1:]),
        host_bytes_peak=stats.memory.host_peak_bytes,
        host_capacity_bytes=stats.memory.host_capacity_bytes,
        num_pages=stats.pages_total,
    )


def num_loads(server: Serving) -> int:
    return server.live.client.stats().adapter_loads_total
