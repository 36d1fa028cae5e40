"""`make churn`: 200,000 random operations on memory, every answer and every page checked.

Owns the rounds, the list of failed seeds and the result file; an episode is memory_soak_life.py's.
A failed seed is repeated by `python -P -m lorry.bench.memory_soak --seed N --episodes 1`. The tests
run a few seeds of the same episodes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from .machine import describe_machine
from .memory_soak_life import Episode, Totals

RESULT_PATH = Path(__file__).parent / "results" / "memory-soak.json"
OPERATIONS_PER_EPISODE = 2000
MAX_FAILURES = 10


@dataclass(slots=True)
class Outcome:
    """Of many episodes."""

    totals: Totals = field(default_factory=Totals)
    failures: list[str] = field(default_factory=list[str])  # a line each, seed first
    num_seeds: int = 0
    seconds: float = 0.0


def run_episodes(
    first_seed: int, *, num_operations: int, num_episodes: int | None = None
) -> Outcome:
    """Until so many operations are done. A failed episode is told, and does not end it."""
    outcome, start_s = Outcome(), time.perf_counter()
    for seed in count(first_seed):
        if outcome.num_seeds == num_episodes or outcome.totals.operations >= num_operations:
            break
        outcome.num_seeds += 1
        try:
            outcome.totals.add(Episode(seed).run(OPERATIONS_PER_EPISODE))
        # Whatever ends an episode is a finding; the next seed may have another.
        except Exception as error:
            traceback.print_exc()
            outcome.failures.append(f"{seed}: {type(error).__name__}: {error}")
            if len(outcome.failures) >= MAX_FAILURES:
                break
    outcome.seconds = time.perf_counter() - start_s
    return outcome


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.memory_soak")
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--episodes", type=int, default=None, help="at most so many")
    parser.add_argument("--result", type=Path, default=None)
    args = parser.parse_args(argv)
    # Loads are made to fail by the hundred; the engine's word on each is no news here.
    logging.getLogger("lorry.server").setLevel(logging.ERROR)
    outcome = run_episodes(args.seed, num_operations=args.operations, num_episodes=args.episodes)
    document = make_document(outcome, first_seed=args.seed)
    print(json.dumps(document))
    # A run of chosen episodes repeats a failure; it is no result.
    result = args.result or (RESULT_PATH if args.episodes is None else None)
    if result is not None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if outcome.failures else 0


def make_document(outcome: Outcome, *, first_seed: int) -> dict[str, object]:
    return {
        "bench": "memory-soak",
        "seeds": [first_seed, first_seed + outcome.num_seeds - 1],
        **asdict(outcome.totals),
        "failures": outcome.failures,
        "seconds": round(outcome.seconds, 1),
        "machine": asdict(describe_machine()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
