"""`make soak`: random lives of the engine, one after the other, for as long as is asked.

Owns the rounds, the list of failed seeds and the result file; an episode is fuzz_episode.py's. A
failed seed is repeated by `python -P -m lorry.bench.fuzz --seed N --episodes 1`, one of the
overlapped loop with `--overlap`. The tests run a few dozen seeds of the same episodes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path

import torch

from .fuzz_episode import run_episode
from .fuzz_records import Totals
from .fuzz_world import FuzzWorld
from .machine import describe_machine

RESULT_PATH = Path(__file__).parent / "results" / "soak-engine.json"
OVERLAPPED_PATH = RESULT_PATH.with_name("soak-engine-overlapped.json")
MAX_FAILURES = 10


@dataclass(slots=True)
class Outcome:
    """Of many episodes."""

    totals: Totals = field(default_factory=Totals)
    failures: list[str] = field(default_factory=list[str])  # a line each, seed first
    seconds: float = 0.0


def run_seeds(world: FuzzWorld, seeds: Iterable[int], *, overlaps: bool = False) -> Outcome:
    """All episodes of the seeds; a failed one is noted, and told on stderr, and does not end it."""
    outcome, start_s = Outcome(), time.perf_counter()
    for seed in seeds:
        try:
            outcome.totals.add(run_episode(world, seed, overlaps=overlaps))
        # Whatever ends an episode is a finding; the next seed may have another.
        except Exception as error:
            traceback.print_exc()
            outcome.failures.append(f"{seed}: {type(error).__name__}: {error}")
            if len(outcome.failures) >= MAX_FAILURES:
                break
    outcome.seconds = time.perf_counter() - start_s
    return outcome


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
        outcome = run_seeds(world, seeds(), overlaps=args.overlap)
        world.close()
    document = make_document(outcome, first_seed=args.seed, overlaps=args.overlap)
    print(json.dumps(document))
    # A run of chosen episodes repeats a failure; it is no result.
    path = OVERLAPPED_PATH if args.overlap else RESULT_PATH
    result = args.result or (path if args.episodes is None else None)
    if result is not None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if outcome.failures else 0


def make_document(outcome: Outcome, *, first_seed: int, overlaps: bool) -> dict[str, object]:
    num_seeds = outcome.totals.episodes + len(outcome.failures)
    return {
        "bench": "soak-engine",
        "loop": "overlapped" if overlaps else "plain",
        "seeds": [first_seed, first_seed + num_seeds - 1],
        **asdict(outcome.totals),
        "failures": outcome.failures,
        "seconds": round(outcome.seconds, 1),
        "machine": asdict(describe_machine()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
