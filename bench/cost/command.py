"""`lorry bench cost`: how well the cost model foretells steps, and what its rank terms are worth.

Owns the order of the run and what is printed: the ceiling first, then what was measured, then one
JSON line. Step logs are given, one to fit to and one to judge by, or made here with a live server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ...server.step_meter import MeteredStep
from ..machine import ROOT_DIR, describe_machine
from ..server_process import ServerFailed
from .document import Report, ceiling_line, draw_table, make_document
from .judgement import Judgement, TooFewSteps, judge_load
from .loads import LOADS, LogsFailed
from .step_logs import BadStepLog, read_step_log, write_step_log

RESULTS = Path(__file__).parent.parent / "results"
BUILD = ROOT_DIR / "build"
NUM_ROUNDS, TURN_S = 2, 20.0  # of each of the six traces
QUICK_ROUNDS, QUICK_TURN_S = 1, 25.0
FAILURES = (BadStepLog, TooFewSteps, ServerFailed, LogsFailed, LorryClientError, OSError)


@dataclass(frozen=True, slots=True)
class Options:
    fit: Path | None  # None: logs are made
    judge: Path | None
    quick: bool
    device: str
    result: Path


def main(argv: Sequence[str]) -> int:
    options, console = parse(argv), make_console()
    try:
        report = run(options, console)
    except FAILURES as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    for name, found in report.judgements.items():
        console.print(ceiling_line(name, found), highlight=False)
    for name, found in report.judgements.items():
        console.print(draw_table(name, found))
    document = make_document(report)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document), flush=True)
    return 0


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench cost", description=__doc__)
    parser.add_argument("--fit", type=Path, help="a step log to fit to; default: made here")
    parser.add_argument("--judge", type=Path, help="another one to judge by")
    parser.add_argument("--quick", action="store_true", help="3 minutes, into build/; no claims")
    parser.add_argument("--device", default="cpu", help="of the server: cpu or cuda")
    parser.add_argument("--result", type=Path, help="default: bench/results/cost-DEVICE.json")
    args = parser.parse_args(argv)
    if (args.fit is None) != (args.judge is None):
        parser.error("--fit and --judge go together")
    name = f"cost-{args.device.partition(':')[0]}.json"
    offhand = args.quick or args.fit is not None
    result = args.result or (BUILD if offhand else RESULTS) / name
    return Options(args.fit, args.judge, args.quick, args.device, result)


def run(options: Options, console: Console) -> Report:
    if options.fit is not None and options.judge is not None:
        found = judge_load(read_step_log(options.fit), read_step_log(options.judge))
        about: dict[str, Any] = {"fit": str(options.fit), "judge": str(options.judge)}
        return Report({"given": found}, about, describe_machine())
    return _run_live(options, console)


def _run_live(options: Options, console: Console) -> Report:
    from ..slo.live import default_place  # with torch and the client: not for given logs
    from .live_logs import make_logs

    place = default_place(options.device)
    rounds, turn_s = (QUICK_ROUNDS, QUICK_TURN_S) if options.quick else (NUM_ROUNDS, TURN_S)
    steps = make_logs(
        LOADS,
        place,
        BUILD / "slo",
        num_rounds=rounds,
        turn_s=turn_s,
        tell=lambda line: console.print(line, highlight=False),
    )
    keep_logs(steps, options.result.with_suffix(""))
    about = {"rounds": rounds, "turn_s": turn_s, "place": place}
    about |= {"loads": LOADS, "quick": options.quick}
    return Report(_judge(steps), about, describe_machine())


def keep_logs(steps: Mapping[str, Sequence[MeteredStep]], folder: Path) -> None:
    """The raw result, by trace."""
    for name, of in steps.items():
        write_step_log(folder / f"{name}.csv.gz", of)


def _judge(steps: Mapping[str, Sequence[MeteredStep]]) -> dict[str, Judgement]:
    return {
        load.name: judge_load(steps[load.fit.name], steps[load.judged.name], kind=load.kind)
        for load in LOADS
    }
