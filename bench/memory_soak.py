"""`make churn`: 200,000 random operations on memory, every answer and every page checked.

Owns how many there are and the result's name; an episode is memory_soak_life.py's, their sums and
failures are soak_rounds.py's. A failed seed is repeated by `python -P -m lorry.bench.memory_soak
--seed N --episodes 1`. The tests run a few seeds of the same episodes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import count, islice, takewhile
from pathlib import Path

from .memory_soak_life import Episode, Totals
from .soak_rounds import Outcome, conclude, run_seeds

RESULT_PATH = Path(__file__).parent / "results" / "memory-soak.json"
OPERATIONS_PER_EPISODE = 2000


def run_episodes(
    first_seed: int, *, num_operations: int, num_episodes: int | None = None
) -> Outcome[Totals]:
    """Until so many operations are done."""
    totals = Totals()
    seeds = takewhile(
        lambda _: totals.operations < num_operations, islice(count(first_seed), num_episodes)
    )
    return run_seeds(seeds, lambda seed: Episode(seed).run(OPERATIONS_PER_EPISODE), totals)


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
    # A run of chosen episodes repeats a failure; it is no result.
    result = args.result or (RESULT_PATH if args.episodes is None else None)
    return conclude({"bench": "memory-soak"}, outcome, first_seed=args.seed, result=result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
