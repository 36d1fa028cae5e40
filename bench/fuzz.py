"""`make soak`: random lives of the engine, one after the other, for as long as is asked.

Owns how long it lasts and the result's name; an episode is fuzz_episode.py's, their sums and
failures are soak_rounds.py's. A failed seed is repeated by `python -P -m lorry.bench.fuzz --seed N
--episodes 1`, one of the overlapped loop with `--overlap`. The tests run a few dozen seeds of the
same episodes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import count, islice
from pathlib import Path

import torch

from .fuzz_episode import run_episode
from .fuzz_records import Totals
from .fuzz_world import FuzzWorld
from .soak_rounds import Outcome, conclude, run_seeds

RESULT_PATH = Path(__file__).parent / "results" / "soak-engine.json"
OVERLAPPED_PATH = RESULT_PATH.with_name("soak-engine-overlapped.json")


def run_lives(world: FuzzWorld, seeds: Iterable[int], *, overlaps: bool = False) -> Outcome[Totals]:
    """All episodes of the seeds."""
    return run_seeds(seeds, lambda seed: run_episode(world, seed, overlaps=overlaps), Totals())


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--episodes", type=int, default=None, help="at most so many")
    parser.add_argument("--overlap", action="store_true", help="drive the overlapped loop")
    parser.add_argument("--result", type=Path, default=None)
    args = parser.parse_args(argv)
    # Loads are made to fail by the hundred; the engine's word on each is no news here.
    logging.getLogger("lorry.server").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    end_s = time.perf_counter() + 60 * args.minutes

    def seeds() -> Iterable[int]:
        for seed in islice(count(args.seed), args.episodes):
            if time.perf_counter() >= end_s:
                return
            yield seed

    with tempfile.TemporaryDirectory(prefix="lorry-soak-") as home:
        world = FuzzWorld(Path(home))
        outcome = run_lives(world, seeds(), overlaps=args.overlap)
        world.close()
    # A run of chosen episodes repeats a failure; it is no result.
    path = OVERLAPPED_PATH if args.overlap else RESULT_PATH
    result = args.result or (path if args.episodes is None else None)
    about = {"bench": "soak-engine", "loop": "overlapped" if args.overlap else "plain"}
    return conclude(about, outcome, first_seed=args.seed, result=result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
