"""`lorry bench throughput`: workload W through Lorry, beside transformers and PEFT in one call.

Owns the order of the run (ceiling, rounds, judgement, step split), what is printed and the exit
code: 1 when the rows turn out not to be the same work, or the adapters not to act. Who answers,
who is compared and what is concluded is told by the other files of this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ...server.cli_output import console as make_console
from ...server.config import SchedulingConfig
from ..machine import ROOT_DIR, describe_machine, tell_busy
from ..server_process import ServerFailed
from .ceiling import Ceiling, CeilingProbe
from .child import Child, ChildFailed
from .document import Report, draw_rows, make_document
from .figures import SameWork, failures, goal_lines, ratios, work_lines
from .peer_worker import Peer, PeerSpec
from .peers import PEERS, compare, peer_ways
from .rounds import Row, Way, WrongWork, run_rounds
from .service import ReplyMissing, Service, server_flags, serving
from .split import StepSplit, split_lines
from .split_probe import SplitProbe
from .workload import Place, Workload
from .workload_files import WorkloadFiles, prepare_files

RESULTS = Path(__file__).parent.parent / "results"
CACHE_DIR = ROOT_DIR / "build" / "workload"
NUM_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    peers: tuple[str, ...]
    num_rounds: int  # that count
    place: Place  # of every row
    splits: bool  # whether the steps are taken apart
    result: Path
    cache: Path  # where the workload's files are kept


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    console = make_console()
    workload = Workload()
    try:
        report = run(workload, options, console)
    except (ServerFailed, ReplyMissing, ChildFailed, WrongWork) as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    return conclude(report, options, console)


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench throughput", description=__doc__)
    parser.add_argument(
        "--peers", type=_peers, default=PEERS, help="of hf and peft, by commas; none: neither"
    )
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="that count; one more warms")
    parser.add_argument(
        "--threads", type=int, default=Place().num_threads, help="of every row, on a CPU"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, of every row")
    parser.add_argument("--no-split", action="store_true", help="leave out the step split")
    parser.add_argument("--result", type=Path, help="default: bench/results/throughput-DEVICE.json")
    parser.add_argument("--cache", type=Path, default=CACHE_DIR, help="of the workload's files")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    kind = args.device.partition(":")[0]
    return Options(
        peers=args.peers,
        num_rounds=args.rounds,
        place=Place(args.device, num_threads=args.threads),
        splits=not args.no_split,
        result=args.result or RESULTS / f"throughput-{kind}.json",
        cache=args.cache,
    )


def _peers(text: str) -> tuple[str, ...]:
    names = () if text in ("", "none") else tuple(text.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"there is no peer {unknown[0]!r}; there are hf and peft")
    return names


def run(workload: Workload, options: Options, console: Console) -> Report:
    """Everything that is measured, one thing at a time."""
    machine, load_before = describe_machine(), os.getloadavg()[0]
    tell_busy(load_before, console)
    files = prepare_files(workload, options.cache)
    console.print(f"Workload W: {files.base.parent}", highlight=False)
    with Child(CeilingProbe, workload, options.place) as probe:
        # Prompts in pieces as large as the server's steps.
        ceiling: Ceiling = probe.call("measure", SchedulingConfig().max_step_tokens)
    console.print(
        f"Ceiling, products alone: {ceiling.tok_s:.0f} tokens/s ({ceiling.decode_ms:.1f} ms a "
        f"decode step, {ceiling.prefill_ms:.0f} ms for all prompts)",
        highlight=False,
    )
    rows, work = measure_rows(workload, files, options, console)
    splits: dict[str, dict[str, StepSplit]] = {}
    if options.splits:
        with (
            tempfile.TemporaryDirectory(prefix="lorry-split-") as home,
            Child(SplitProbe, files, workload, options.place, Path(home)) as probe,
        ):
            splits = probe.call("measure")
    return Report(
        workload=workload,
        place=options.place,
        rows=tuple(rows),
        work=work,
        ceiling=ceiling,
        splits=splits,
        machine=machine,
        load_before=load_before,
    )


def measure_rows(
    workload: Workload, files: WorkloadFiles, options: Options, console: Console
) -> tuple[list[Row], SameWork]:
    """The rounds, then what the peers think of the answers."""
    lens = (workload.num_requests, workload.num_new_tokens)
    flags = server_flags(options.place)
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(
                Child(Peer, PeerSpec(files, workload, options.place, mixed=name == "peft"))
            )
            for name in options.peers
        }
        service = stack.enter_context(serving(files, workload, flags))
        rows = run_rounds(
            make_ways(service, workload, peers),
            options.num_rounds,
            lens,
            server_cpu_s=service.cpu_s,
            tell=lambda line: console.print(line, highlight=False),
        )
        return rows, compare({row.way.key: row for row in rows}, peers)


def make_ways(service: Service, workload: Workload, peers: Mapping[str, Child]) -> list[Way]:
    """In the order in which they take turns; each of ours before the peer it is compared with."""
    num_adapters = len(workload.ranks)
    ours = "through the whole service, all requests at once"

    def of_peer(name: str) -> list[Way]:
        if name not in peers:
            return []
        return peer_ways(name, peers[name], num_adapters=num_adapters)

    return [
        Way("base", "lorry, base", ours, lambda: service.generate(mixed=False)),
        *of_peer("hf"),
        Way("lora", f"lorry, {num_adapters} adapters", ours, lambda: service.generate(mixed=True)),
        *of_peer("peft"),
    ]


def conclude(report: Report, options: Options, console: Console) -> int:
    """Prints and writes what was measured; the exit code."""
    document = make_document(report)
    wrong = failures(report.work, {row.way.key: row.server_share for row in report.rows})
    console.print(draw_rows(report.rows))
    tok_s = {row.way.key: row.median_tok_s for row in report.rows}
    lines = [
        *split_lines(report.splits),
        *work_lines(report.work),
        *goal_lines(ratios(tok_s), with_targets=report.place.device == "cpu"),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for line in wrong:
        console.print(f"FAILED: {line}", style="red", markup=False, highlight=False)
    if not wrong:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document), flush=True)
    return 1 if wrong else 0
