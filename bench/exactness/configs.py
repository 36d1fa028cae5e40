"""Thousands of random LoraConfigs: each refused by a field it names, or exactly PEFT's.

Run as `python -m lorry.bench.exactness.configs`; a smaller number is a test. A mismatch ends
the run with the number that makes it again. Writes results/exactness-configs.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from ..machine import describe_machine
from .config_draws import draw_config
from .config_judge import Mismatch, Outcome, judge
from .config_worlds import WORLDS, World, make_world

RESULT_PATH = Path(__file__).resolve().parents[1] / "results" / "exactness-configs.json"
NUM_EXAMPLES = 2500
TELL_EVERY = 200


def try_examples(num_examples: int, seed: int) -> Iterator[tuple[World, Outcome]]:
    """Raises Mismatch, with the seed of the one example."""
    worlds = [make_world(name) for name in WORLDS]
    for index in range(num_examples):
        world = worlds[index % len(worlds)]
        example = f"{seed}-{index}"
        rng = Random(example)
        drawn = draw_config(rng, world)
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield world, judge(rng, world, drawn, Path(folder))
            except Mismatch as error:
                raise Mismatch(f"example {example}, {drawn}: {error}") from error


def run(num_examples: int, seed: int) -> dict[str, Any]:
    """The record that is written."""
    start_s = time.perf_counter()
    kinds: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    by_world: dict[str, Counter[str]] = {name: Counter() for name in WORLDS}
    num_modules = 0
    for index, (world, outcome) in enumerate(try_examples(num_examples, seed), start=1):
        kinds[outcome.kind] += 1
        by_world[world.name][outcome.kind] += 1
        num_modules += outcome.num_modules
        if outcome.kind == "refused":
            # A tensor's name says its kind by its last parts.
            fields[outcome.field if "." not in outcome.field else "a tensor"] += 1
        if index % TELL_EVERY == 0:
            print(f"{index} of {num_examples}: {dict(kinds)}", file=sys.stderr)
    return {
        "bench": "exactness-configs",
        "examples": num_examples,
        "seed": seed,
        "equal": kinds["equal"],
        "refused": kinds["refused"],
        "impossible": kinds["impossible"],
        "modules_compared": num_modules,
        "refused_by": dict(fields.most_common()),
        "by_base": {name: dict(counts) for name, counts in by_world.items()},
        "seconds": round(time.perf_counter() - start_s, 1),
        "machine": asdict(describe_machine()),
    }


def main(
    examples: Annotated[int, typer.Option(help="How many configs.")] = NUM_EXAMPLES,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:
    record = run(examples, seed)
    RESULT_PATH.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    typer.run(main)
