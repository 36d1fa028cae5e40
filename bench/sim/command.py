"""`lorry bench sim`: the simulator judged by what was published, by a live server, and by a clock.

Three parts, each alone with `--only`: S-LoRA's overload on the profile a100-13b; a live server on
this machine, fitted on one trace and judged on another; and how many requests a second are
simulated. Owns their order, what is printed and written, and the exit code: 1 when a claim does
not hold or a part failed; a quick run claims nothing. A partial or quick run, or one of which a
part failed, is written below build/, so that it never stands in for the committed result.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ...server.scheduling.policies import POLICIES
from ..attempts import Attempts
from ..cost.step_logs import BadStepLog
from ..machine import ROOT_DIR, describe_machine
from ..server_process import ServerFailed
from ..slo.client import PATIENCE_S
from ..slo.fleet import CACHE_DIR
from ..slo.live import ServerUnfit, default_place
from ..slo.rates import NoCapacity
from ..slo.stamps import Run
from ..slo.unloaded import SoloFailed
from ..throughput.child import ChildFailed
from ..workload.records import Workload
from . import scale, slora
from .document import PARTS, Report, failures, last_line, make_document
from .fit import TooFewSteps
from .live_run import LiveFailed, run_live
from .live_traces import FULL, QUICK, TraceSize
from .profile import Profile, named_profile, write_profile
from .raw import draw_plots, write_raw
from .simulate import simulate
from .slora_profile import NAME as SLORA_PROFILE
from .table import draw_live, draw_slora, live_lines, scale_lines
from .versus import LiveReport, study

RESULTS = Path(__file__).parent.parent / "results"
SCRATCH = ROOT_DIR / "build" / "sim"
NUM_REQUESTS, NUM_QUICK = 20_000, 2_000  # of the part `scale`
PART_FAILURES = (
    *(ServerFailed, ServerUnfit, ChildFailed, SoloFailed, NoCapacity),
    *(LiveFailed, TooFewSteps, BadStepLog, LorryClientError, OSError),
)


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    parts: tuple[str, ...]
    num_requests: int  # of `scale`
    is_quick: bool
    device: str  # of the live server
    result: Path
    cache: Path  # of the live server's model and adapters

    @property
    def raw(self) -> Path:
        """Folder of stamps, steps, profile and pictures; another one for each device."""
        return self.result.with_suffix("")


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    console = make_console()
    return conclude(run(options, console), options, console)


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench sim", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument(
        "--scale", type=int, default=0, metavar="N", help=f"requests; default {NUM_REQUESTS}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="short traces, what is quoted alone; no claims"
    )
    parser.add_argument("--device", default="cpu", help="of the live server")
    parser.add_argument("--result", type=Path, help="default: bench/results/sim-DEVICE.json")
    parser.add_argument("--cache", type=Path, default=CACHE_DIR, help="of model and adapters")
    args = parser.parse_args(argv)
    if args.scale < 0:
        parser.error(f"--scale is {args.scale}; it must be at least 1")
    parts = tuple(part for part in PARTS if part in (args.only or PARTS))
    num_requests = args.scale or (NUM_QUICK if args.quick else NUM_REQUESTS)
    whole = parts == PARTS and num_requests >= NUM_REQUESTS and not args.quick
    name = f"sim-{args.device.partition(':')[0]}.json"
    return Options(
        parts=parts,
        num_requests=num_requests,
        is_quick=args.quick,
        device=args.device,
        result=args.result or (RESULTS if whole else SCRATCH) / name,
        cache=args.cache,
    )


def run(options: Options, console: Console) -> Report:
    machine, load_before = describe_machine(), os.getloadavg()[0]
    hardware = ", ".join(part for part in (machine.cpu, machine.gpu) if part)
    _say(console, f"{hardware}, {machine.num_cores} cores; load average {load_before:.1f}")
    say = partial(_say, console)
    parts = Attempts(PARTS, wanted=options.parts, ends=PART_FAILURES, tell=say)
    # The live server first: nothing has warmed the machine yet, and it is the part that minds.
    live = parts.attempt("live", lambda: measure_live(options, console))
    published = parts.attempt("slora", lambda: repeat_slora(options))
    scaled = parts.attempt("scale", lambda: scale.run(options.num_requests))
    return Report(
        published,
        live,
        scaled,
        parts.not_run,
        machine,
        is_quick=options.is_quick,
        took_s=parts.took_s,
        load_before=load_before,
        failed=parts.failed,
    )


def repeat_slora(options: Options) -> list[slora.Reproduced]:
    profile = named_profile(SLORA_PROFILE)
    runs = slora.QUOTED if options.is_quick else slora.ALL

    def answer(workload: Workload, policy: str) -> Run:
        return simulate(workload, profile, policy=POLICIES[policy]).run

    return slora.reproduce(answer, runs)


def measure_live(options: Options, console: Console) -> LiveReport:
    size: TraceSize = QUICK if options.is_quick else FULL
    place = default_place(options.device)
    live = run_live(size, place, options.cache, tell=lambda line: _say(console, line))
    return study(live, simulate_live, result=_shown(options.result))


def simulate_live(workload: Workload, profile: Profile, policy: str) -> Run:
    """With the live client's patience, and all its stamps."""
    done = simulate(
        workload, profile, policy=POLICIES[policy], timeout_s=PATIENCE_S, all_pieces=True
    )
    return done.run


def conclude(report: Report, options: Options, console: Console) -> int:
    """Prints and writes; the exit code."""
    options = replace(options, result=place_of(report, options.result))
    if report.slora is not None:
        console.print(draw_slora(report.slora))
    if report.live is not None:
        console.print(draw_live(report.live.agreements))
        for line in live_lines(report.live):
            _say(console, line)
    if report.scale is not None:
        for line in scale_lines(report.scale):
            _say(console, line)
    wrong = failures(report)
    for line in wrong:
        console.print(f"FAILED: {line}", style="red", markup=False, highlight=False)
    if wrong and report.is_quick:
        _say(console, "A quick run claims nothing: of these only a part that failed counts.")
    write(report, options)
    _say(console, f"written: {options.result}")
    print(json.dumps(last_line(report)), flush=True)
    return 1 if (report.failed if report.is_quick else wrong) else 0


def place_of(report: Report, wanted: Path) -> Path:
    replaces = wanted.parent == RESULTS
    return SCRATCH / wanted.name if report.failed and replaces else wanted


def write(report: Report, options: Options) -> None:
    """What did not hold is written too: a miss is a result."""
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(make_document(report), indent=1) + "\n")
    if report.live is not None:
        write_raw(report.live, options.raw, report.machine)
        write_profile(report.live.profile, options.raw / f"{report.live.profile.name}.json")
        draw_plots(report.live, options.raw, report.machine)


def _shown(path: Path) -> str:
    """As it stands in the repository, where it does."""
    path = path.resolve()
    return str(path.relative_to(ROOT_DIR)) if path.is_relative_to(ROOT_DIR) else path.name


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
