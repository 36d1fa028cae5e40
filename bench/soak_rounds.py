"""Many episodes of a soak, one seed after the other: sums, failures and the result file.

Owns that a failed episode is told and does not end the others, and what is written of all. Does
not know what an episode does. Called by fuzz.py and memory_soak.py.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Generic, Self, TypeVar

from .machine import describe_machine

MAX_FAILURES = 10


@dataclass(slots=True)
class Sums:
    """What happened, as counters; of one episode, or of many."""

    episodes: int = 0

    def add(self, other: Self) -> None:
        for counter in fields(self):
            name = counter.name
            setattr(self, name, getattr(self, name) + getattr(other, name))


AnySums = TypeVar("AnySums", bound=Sums)


@dataclass(slots=True)
class Outcome(Generic[AnySums]):
    """Of many episodes."""

    totals: AnySums
    failures: list[str] = field(default_factory=list[str])  # a line each, seed first
    num_seeds: int = 0
    seconds: float = 0.0


def run_seeds(
    seeds: Iterable[int], run: Callable[[int], AnySums], totals: AnySums
) -> Outcome[AnySums]:
    """Adds every episode to `totals`, which `seeds` may look at to end. A failed one is noted, and
    told on stderr; only MAX_FAILURES of them are the end.
    """
    outcome, start_s = Outcome(totals), time.perf_counter()
    for seed in seeds:
        outcome.num_seeds += 1
        try:
            totals.add(run(seed))
        # Whatever ends an episode is a finding; the next seed may have another.
        except Exception as error:
            traceback.print_exc()
            outcome.failures.append(f"{seed}: {type(error).__name__}: {error}")
            if len(outcome.failures) >= MAX_FAILURES:
                break
    outcome.seconds = time.perf_counter() - start_s
    return outcome


def conclude(
    about: Mapping[str, object], outcome: Outcome[AnySums], *, first_seed: int, result: Path | None
) -> int:
    """Prints, and writes if there is a place; the exit code."""
    document = {
        **about,
        "seeds": [first_seed, first_seed + outcome.num_seeds - 1],
        **asdict(outcome.totals),
        "failures": outcome.failures,
        "seconds": round(outcome.seconds, 1),
        "machine": asdict(describe_machine()),
    }
    print(json.dumps(document))
    if result is not None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if outcome.failures else 0
