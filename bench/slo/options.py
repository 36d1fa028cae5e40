"""The options of `lorry bench slo`: a command line in, one frozen record out.

Owns the flags, their defaults for the full and for the quick run, and where results go: a quick
run writes under build/, so that it never takes the place of a result that is quoted. Called by
command.py.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...server.config import POLICIES
from ..machine import ROOT_DIR
from ..throughput.workload import Place
from .bounds import FixedBounds
from .client import PATIENCE_S
from .live import default_place
from .offers import Axis
from .run import QUICK, TPOT_X, TTFT_X, Plan
from .source import DEFAULT, Source

RESULTS = ROOT_DIR / "bench" / "results"
BUILD = ROOT_DIR / "build" / "slo"
QUICK_REQUESTS, QUICK_ADAPTERS = 60, 32


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    is_quick: bool
    policies: tuple[str, ...]
    source: Source
    plan: Plan
    place: Place  # of every server
    model: Path | None  # None: the fleet's own
    server_flags: tuple[str, ...]  # besides those of live.py; these win
    timeout_s: float  # of a request
    command: str  # as it was typed
    result: Path
    failed: Path  # where a run that is no result leaves what it has
    plots: Path  # folder
    cache: Path  # of the model and its adapters


def parse(argv: Sequence[str]) -> Options:
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.ttft is None) != (args.tpot is None):
        parser.error("--ttft and --tpot: fixed bounds are given both or not at all")
    if args.loads and args.rates:
        parser.error("--loads and --rates: one of them")
    if args.workload and args.preset:
        parser.error("--workload and --preset: one of them")
    drawn = {"--requests": args.requests, "--adapters": args.adapters, "--seed": args.seed}
    if args.workload and (told := [flag for flag, value in drawn.items() if value is not None]):
        parser.error(f"--workload and {told[0]}: a file is replayed as it is")
    if args.model is not None and not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: no folder of a model, it has no config.json")
    kind = args.device.partition(":")[0]
    default = BUILD / "quick.json" if args.quick else RESULTS / f"slo-{kind}.json"
    result: Path = args.result or default
    return Options(
        is_quick=args.quick,
        policies=args.policies,
        source=_source(args),
        plan=_plan(args),
        place=default_place(args.device, dtype=args.dtype),
        model=args.model,
        server_flags=tuple(args.server_flags.split()),
        timeout_s=args.timeout,
        command=shlex.join(["lorry", "bench", "slo", *argv]),
        result=result,
        failed=args.cache / "failed.json",
        plots=args.plots or result.parent,
        cache=args.cache,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorry bench slo")
    add = parser.add_argument
    add("--quick", action="store_true", help="2 loads x 60 requests a policy; claims nothing")
    add("--policies", type=_policies, default=POLICIES, help="by commas, the first is compared to")
    add("--preset", default="", help="of python -m lorry.bench.workload; default: slo-mixed")
    add("--workload", type=Path, help="a workload's file, replayed as it was drawn")
    add("--loads", type=_numbers, default=(), help="offered, in capacities: 0.5,1,2")
    add("--rates", type=_numbers, default=(), help="offered, in requests/s")
    add("--requests", type=_count, help=f"of each cell; {DEFAULT.num_requests}")
    add("--adapters", type=_count, help=f"default {DEFAULT.num_adapters}")
    add("--rounds", type=_count, default=0, help="of all cells; 3, quick 1")
    add("--seed", type=int, help="of the workload; default 0")
    add("--ttft-x", type=_above_0, default=TTFT_X, help="bound: so many times unloaded")
    add("--tpot-x", type=_above_0, default=TPOT_X, help="the same of the time between tokens")
    add("--ttft", type=_above_0, help="fixed bound, seconds; with --tpot")
    add("--tpot", type=_above_0, help="fixed bound, seconds")
    add("--timeout", type=_above_0, default=PATIENCE_S, help="a client's patience, seconds")
    add("--device", default="cpu", help="cpu or cuda, of the servers")
    add("--dtype", default="bfloat16", help="of the servers")
    add("--model", type=Path, help="folder of another base; with --workload, as lengths differ")
    add("--server-flags", default="", help="further flags of lorry serve, in one word")
    add("--result", type=Path, help="default bench/results/slo-DEVICE.json; quick: under build/")
    add("--plots", type=Path, help="folder of the PNGs; default: the result's")
    add("--cache", type=Path, default=BUILD, help="of the model and its adapters")
    return parser


def _source(args: argparse.Namespace) -> Source:
    num_requests = QUICK_REQUESTS if args.quick else DEFAULT.num_requests
    num_adapters = QUICK_ADAPTERS if args.quick and not args.preset else 0
    return Source(
        preset=args.preset,
        file=args.workload,
        num_requests=args.requests or num_requests,
        num_adapters=args.adapters or num_adapters,
        seed=args.seed or 0,
    )


def _plan(args: argparse.Namespace) -> Plan:
    plan = QUICK if args.quick else Plan()
    axis = plan.axis
    if args.loads or args.rates:
        axis = Axis(args.loads, args.rates)
    elif args.workload:
        axis = Axis()  # a file is replayed at its own rate
    return replace(
        plan,
        axis=axis,
        num_rounds=args.rounds or plan.num_rounds,
        fixed=None if args.ttft is None else FixedBounds(args.ttft, args.tpot),
        ttft_x=args.ttft_x,
        tpot_x=args.tpot_x,
    )


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in POLICIES]:
        told = ", ".join(POLICIES)
        raise argparse.ArgumentTypeError(f"there is no policy {unknown[0]!r}; there are {told}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a policy twice")
    return names


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_above_0(word) for word in text.split(","))


def _above_0(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
