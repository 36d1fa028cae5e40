"""`lorry bench overhead`: the work around the products, tokens per second on the tiny zoo.

Owns the load (64 requests of one length, sent at once), the rounds, which take turns so that a
slow minute of the machine hits every row, and the result file. A model of this size measures
the work around the matrix products, not the products: see README.md before quoting a row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..proto.async_client import AsyncClient
from ..server.cli_output import console as make_console
from .load import Ask, send_all
from .machine import describe_machine
from .peft_baseline import PeftBaseline, Turn
from .server_process import ServerFailed, ServerProcess, lorry_command
from .zoo.model import ZOO_DIR, adapter_dir
from .zoo.tasks import BASE_NAME, TASKS, held_out_prompts

RESULT_PATH = Path(__file__).parent / "results" / "overhead-zoo-cpu.json"
NUM_REQUESTS = 64
NUM_NEW_TOKENS = 64
NUM_ROUNDS = 3
NUM_HELP_RUNS = 5
# Room for every adapter and every request at once: this bench is not about memory.
POOL_BYTES = 64 << 20
# Prompts of eight letters and the mark behind them.
PROMPT_CHARS = 9
NAMES = tuple(task.name for task in TASKS)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer the load."""

    name: str
    note: str  # how the requests are put together
    run: Callable[[], float]  # once; tokens per second


@dataclass(frozen=True, slots=True)
class Measured:
    """One row: a way and its tokens per second in every round."""

    name: str
    note: str
    tokens_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.tokens_per_s)


class ReplyMissing(Exception):
    """A request of the load failed or was cut short, so its round measures nothing."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lorry bench overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument(
        "--threads", type=int, default=0, help="0: Lorry's own choice, and all cores for PEFT"
    )
    parser.add_argument("--result", type=Path, default=RESULT_PATH)
    args = parser.parse_args(argv)
    console = make_console()
    try:
        rows, help_s = measure(args.rounds, args.threads, console)
    except (ServerFailed, ReplyMissing) as failure:
        console.print(str(failure), style="red", markup=False)
        return 1
    document = make_document(rows, help_s, args.threads)
    console.print(draw_rows(rows))
    console.print(f"lorry --help: {statistics.median(help_s):.3f} s, median of {len(help_s)}")
    print(json.dumps(document))
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def measure(
    num_rounds: int, num_threads: int, console: Console
) -> tuple[list[Measured], list[float]]:
    """All rows, round by round, the first round of each thrown away."""
    console.print("No ceiling is given: this model is bound by Python's work per step")
    baseline = PeftBaseline(NAMES, num_threads=num_threads or len(os.sched_getaffinity(0)))
    # Every round asks the same prompts, and PEFT and transformers compute them all.
    flags = (
        *("--dtype", "float32", "--threads", str(num_threads)),
        *("--pool-bytes", str(POOL_BYTES), "--no-prefix-cache"),
    )
    with (
        tempfile.TemporaryDirectory(prefix="lorry-overhead-") as store,
        ServerProcess(ZOO_DIR / "base", Path(store), *flags) as server,
    ):
        upload(server.address)
        rows = run_rounds(make_ways(server.address, baseline), num_rounds)
        server.stop()
    return rows, [time_help() for _ in range(NUM_HELP_RUNS)]


def make_ways(address: str, baseline: PeftBaseline) -> list[Way]:
    base, mixed = [BASE_NAME], NAMES
    return [
        Way("lorry, base", "64 at once", lambda: run_lorry_load(address, base)),
        Way(
            f"lorry, {len(mixed)} adapters",
            "64 at once, mixed",
            lambda: run_lorry_load(address, mixed),
        ),
        Way(
            "transformers, base",
            "one batch of 64",
            lambda: baseline.run(make_turns(base), NUM_NEW_TOKENS),
        ),
        Way(
            f"PEFT, {len(mixed)} adapters",
            "one adapter after the other, its prompts in one batch",
            lambda: baseline.run(make_turns(mixed), NUM_NEW_TOKENS),
        ),
    ]


def run_rounds(ways: Sequence[Way], num_rounds: int) -> list[Measured]:
    """Every way once a round; one round more than counts, to warm up."""
    results: list[list[float]] = [[] for _ in ways]
    for _ in range(num_rounds + 1):
        for result, way in zip(results, ways, strict=True):
            result.append(way.run())
    return [
        Measured(way.name, way.note, tuple(result[1:]))
        for result, way in zip(results, ways, strict=True)
    ]


def make_turns(adapters: Sequence[str]) -> list[Turn]:
    """The load of `make_asks`, sorted by adapter."""
    load = make_load(adapters)
    return [
        Turn(name, tuple(prompt for prompt, adapter in load if adapter == name))
        for name in adapters
    ]


def make_asks(adapters: Sequence[str]) -> list[Ask]:
    return [
        Ask(prompt, adapter, NUM_NEW_TOKENS, ignore_eos=True)
        for prompt, adapter in make_load(adapters)
    ]


def make_load(adapters: Sequence[str]) -> list[tuple[str, str]]:
    """64 prompts for these adapters in turn, all of one length, all different."""
    pool = held_out_prompts(BASE_NAME, 2000)
    prompts = [prompt for prompt in pool if len(prompt) == PROMPT_CHARS][:NUM_REQUESTS]
    return [(prompt, adapters[idx % len(adapters)]) for idx, prompt in enumerate(prompts)]


def run_lorry_load(address: str, adapters: Sequence[str]) -> float:
    """Tokens per second through the running service, from first send to last answer."""

    async def run() -> float:
        async with AsyncClient(address) as client:
            load = await send_all(client, make_asks(adapters))
        errors = [reply.error for reply in load.replies if reply.error]
        if errors:
            raise ReplyMissing(f"{len(errors)} of {len(load.replies)} failed: {errors[0]}")
        lens = {len(reply.token_ids) for reply in load.replies}
        if lens != {NUM_NEW_TOKENS}:
            raise ReplyMissing(f"answers have {sorted(lens)} tokens, not {NUM_NEW_TOKENS}")
        return load.tokens_per_s

    return asyncio.run(run())


def upload(address: str) -> None:
    async def run() -> None:
        async with AsyncClient(address) as client:
            for name in NAMES:
                await client.adapters.upload(adapter_dir(name))

    asyncio.run(run())


def time_help() -> float:
    start_s = time.perf_counter()
    subprocess.run(lorry_command("--help"), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def draw_rows(rows: Sequence[Measured]) -> Table:
    table = Table(title=f"{NUM_REQUESTS} requests, {NUM_NEW_TOKENS} new tokens each, float32")
    for name in ("row", "tokens/s", "rounds", "how"):
        table.add_column(name, justify="right" if name == "tokens/s" else "left")
    for row in rows:
        rounds = " ".join(f"{value:.0f}" for value in row.tokens_per_s)
        table.add_row(row.name, f"{row.median:.0f}", rounds, row.note)
    return table


def make_document(
    rows: Sequence[Measured], help_s: Sequence[float], num_threads: int
) -> dict[str, object]:
    return {
        "bench": "overhead",
        "model": "bench/zoo/base",
        "dtype": "float32",
        "threads_asked": num_threads,
        "num_requests": NUM_REQUESTS,
        "num_new_tokens": NUM_NEW_TOKENS,
        "prompt_seed": 0,
        "rows": [{**asdict(row), "median_tokens_per_s": row.median} for row in rows],
        "help_s": list(help_s),
        "machine": asdict(describe_machine()),
    }
