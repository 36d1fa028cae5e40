"""`lorry bench demo`: see it work on this machine in a minute.

Starts a server with a pool too small for all its adapters and requests together, uploads the
zoo's adapters through the command line, sends 64 requests at once over all of them and the
base, and compares every token with what PEFT generated. Ends with 0 only when all are equal.
Knows what to show, not how anything is served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from ..proto import lorry_pb2 as pb
from ..proto.async_client import AsyncClient
from ..server.cli_output import console as make_console
from .demo_table import Question, Row, Verdict, draw_table, judge, load_questions, rank_label
from .load import Ask, Load, send_all
from .machine import describe_machine
from .pages_picture import ADAPTER, CACHED, FREE, KV, PageRun, draw_pages
from .server_process import ServerFailed, ServerProcess, run_lorry

ZOO_DIR = Path(__file__).parent / "zoo"
# 160 pages of 32 KiB in float32; the zoo's adapters alone take 168 and the requests as many
# again, so that neither has room without the other giving way.
POOL_BYTES = 5 << 20
# Longer than any right answer, so that a wrong one is seen to run on.
MAX_NEW_TOKENS = 32
SHUFFLE_SEED = 0
KINDS = {
    pb.PAGE_KIND_FREE: FREE,
    pb.PAGE_KIND_KV: KV,
    pb.PAGE_KIND_ADAPTER: ADAPTER,
    pb.PAGE_KIND_CACHED: CACHED,
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What was seen while the requests ran."""

    load: Load
    info: pb.Info
    before: pb.Stats
    after: pb.Stats
    fullest: tuple[PageRun, ...]  # the pool at the moment when KV and adapters shared it most


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    console = make_console()
    try:
        return run(args, console)
    except ServerFailed as failure:
        console.print(str(failure), style="red", markup=False)
        return 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lorry bench demo", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pool-bytes", type=int, default=POOL_BYTES, help="pool of the server")
    parser.add_argument("--result", type=Path, help="also write the outcome to this JSON file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, console: Console) -> int:
    questions = load_questions(ZOO_DIR / "answers.json")
    random.Random(SHUFFLE_SEED).shuffle(questions)
    # float32 also on a GPU: the recorded answers are PEFT's in float32.
    flags = ("--device", args.device, "--dtype", "float32", "--pool-bytes", str(args.pool_bytes))
    with tempfile.TemporaryDirectory(prefix="lorry-demo-") as store:
        console.print(f"Starting lorry serve on {args.device}")
        with ServerProcess(ZOO_DIR / "base", Path(store), *flags) as server:
            if code := upload_zoo(server.address, console):
                return code
            scene = asyncio.run(play(server.address, questions))
            server.stop()
    rows = make_rows(questions, scene.load)
    verdict = judge(rows)
    show(scene, rows, verdict, console)
    if args.result is not None:
        write_result(args.result, args.device, scene, verdict)
    return 0 if verdict.is_pass else 1


def upload_zoo(address: str, console: Console) -> int:
    """The exit code of `lorry adapter upload`, whose output is shown as it is."""
    folders = sorted(str(folder.parent) for folder in ZOO_DIR.glob("adapters/*/*.safetensors"))
    console.print(f"lorry adapter upload bench/zoo/adapters/* --address {address}")
    sys.stdout.flush()
    return run_lorry(["adapter", "upload", *folders, "--address", address])


async def play(address: str, questions: Sequence[Question]) -> Scene:
    """Sends everything at once and watches the pool until the last answer is there."""
    asks = [Ask(q.prompt, q.adapter, max_new_tokens=MAX_NEW_TOKENS) for q in questions]
    async with AsyncClient(address) as client:
        info, before = await client.info(), await client.stats()
        sending = asyncio.create_task(send_all(client, asks))
        try:
            fullest = await watch_pool(client, sending)
            load = await sending
        finally:
            sending.cancel()
        after = await client.stats()
    return Scene(load, info, before, after, fullest)


async def watch_pool(client: AsyncClient, sending: asyncio.Task[Load]) -> tuple[PageRun, ...]:
    """Asks for the pages again and again; keeps the moment with the most of both kinds."""
    fullest: tuple[PageRun, ...] = ()
    best = (-1, -1)
    while not sending.done():
        stats = await client.stats(pages=True)
        score = (min(stats.pages_kv, stats.pages_adapter), stats.pages_kv + stats.pages_adapter)
        if score > best:
            best, fullest = score, page_runs(stats)
    return fullest


def page_runs(stats: pb.Stats) -> tuple[PageRun, ...]:
    return tuple(PageRun(KINDS[run.kind], run.count, run.owner) for run in stats.pages)


def make_rows(questions: Sequence[Question], load: Load) -> list[Row]:
    """Sorted for the eye: by adapter, the base first."""
    rows = [
        Row(question, reply, _rank(question.adapter))
        for question, reply in zip(questions, load.replies, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.question.adapter, row.question.prompt))


def _rank(adapter: str) -> str:
    return rank_label(ZOO_DIR / "adapters" / adapter / "adapter_config.json") if adapter else "-"


def show(scene: Scene, rows: Sequence[Row], verdict: Verdict, console: Console) -> None:
    unicode = console.encoding.lower().startswith("utf")
    console.print(draw_table(rows, unicode=unicode))
    info = scene.info
    console.print(
        f"\nThe pool while they ran: {info.num_pages} pages of {info.page_bytes // 1024} KiB, "
        f"{info.tokens_per_page} tokens each as KV; letters are adapters"
    )
    console.print(draw_pages(scene.fullest))
    console.print()
    for line in summary(scene, verdict):
        console.print(line, markup=False, highlight=False)


def summary(scene: Scene, verdict: Verdict) -> list[str]:
    counts = counts_of(scene)
    lines = [
        f"{verdict.num_equal} of {verdict.num_rows} equal PEFT's recorded tokens, "
        f"{verdict.num_right} are right",
        f"{scene.load.tokens_per_s:.0f} tokens/s over {scene.load.wall_s:.2f} s, "
        f"{counts['steps']} steps, {counts['adapter_loads']} adapter loads, "
        f"{counts['adapter_evictions']} evictions, {counts['preemptions']} preemptions",
        f"The server's proof at its start: {scene.info.self_proof}",
    ]
    return [*lines, *(f"differs: {line}" for line in verdict.differing)]


def counts_of(scene: Scene) -> dict[str, int]:
    """What the server's counters moved by while the requests ran."""
    before, after = scene.before, scene.after
    return {
        "steps": after.steps_total - before.steps_total,
        "adapter_loads": after.adapter_loads_total - before.adapter_loads_total,
        "adapter_evictions": after.adapter_evictions_total - before.adapter_evictions_total,
        "preemptions": after.preemptions_total - before.preemptions_total,
    }


def write_result(path: Path, device: str, scene: Scene, verdict: Verdict) -> None:
    document = {
        "bench": "demo",
        "device": device,
        "pass": verdict.is_pass,
        "num_requests": verdict.num_rows,
        "num_equal": verdict.num_equal,
        "num_right": verdict.num_right,
        "differing": verdict.differing,
        "tokens_per_s": scene.load.tokens_per_s,
        "wall_s": scene.load.wall_s,
        **counts_of(scene),
        "self_proof": scene.info.self_proof,
        "machine": asdict(describe_machine()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
