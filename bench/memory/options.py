"""The options of `lorry bench memory`: a command line in, one frozen record out.

Owns the parts, what a quick run leaves out, and where results go: a run that is quick or leaves a
part out writes under build/, so that it never takes the place of a result that is quoted. Called
by command.py.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...server.cli_options import parse_size
from ..machine import ROOT_DIR
from ..slo.fleet import CACHE_DIR
from ..slo.live import default_place
from ..throughput.workload import Place
from .live import LOAD, LivePlan
from .workloads import JUDGED_SEEDS, KINDS, SIMULATED, ZIPF

RESULTS = ROOT_DIR / "bench" / "results"
BUILD = ROOT_DIR / "build" / "memory"
PARTS = ("waste", "simulated", "live")
QUICK_SIMULATED_REQUESTS = 500  # live ones stay as many: of fewer, a split pool is too small


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    parts: tuple[str, ...]
    is_quick: bool
    kinds: tuple[str, ...]  # of the simulated part
    seeds: tuple[int, ...]  # of the simulated part
    num_simulated: int  # requests of each of its cells
    live: LivePlan
    place: Place  # of the live servers
    link_bytes_per_s: float  # emulated for them; 0: none
    command: str  # as it was typed
    result: Path
    cache: Path  # of the live servers' model and adapters

    @property
    def raw(self) -> Path:
        """What every request's TTFT is kept in."""
        return self.result.with_suffix("") / "ttft.jsonl.gz"


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench memory", description=__doc__)
    add = parser.add_argument
    add("--only", choices=PARTS, action="append", help="this part; may be repeated")
    add("--quick", action="store_true", help="one workload, one seed: 3 minutes; claims nothing")
    add("--kinds", type=_kinds, default=(), help=f"of the workloads, by commas; {','.join(KINDS)}")
    add("--load", type=_above_0, default=LOAD, help="offered live, in capacities")
    add("--device", default="cpu", help="of the live servers")
    add("--dtype", default="bfloat16", help="of the live servers")
    add("--link-bytes-per-s", default=0, help="emulate a link of this bandwidth for them, 700MiB")
    add("--result", type=Path, help="default: bench/results/memory.json; quick: under build/")
    add("--cache", type=Path, default=CACHE_DIR, help="of the live servers' model and adapters")
    args = parser.parse_args(argv)
    parts = tuple(part for part in PARTS if part in (args.only or PARTS))
    kinds = args.kinds or ((ZIPF,) if args.quick else KINDS)
    seeds = JUDGED_SEEDS[:1] if args.quick else JUDGED_SEEDS
    live = LivePlan(kinds=kinds, seeds=seeds, load=args.load)
    if args.quick:
        live = replace(live, num_again=0)
    whole = parts == PARTS and kinds == KINDS and args.load == LOAD and not args.quick
    return Options(
        parts=parts,
        is_quick=args.quick,
        kinds=kinds,
        seeds=seeds,
        num_simulated=QUICK_SIMULATED_REQUESTS if args.quick else SIMULATED.num_requests,
        live=live,
        place=default_place(args.device, dtype=args.dtype),
        link_bytes_per_s=float(parse_size(args.link_bytes_per_s)),
        command=shlex.join(["lorry", "bench", "memory", *argv]),
        result=args.result or (RESULTS if whole else BUILD) / "memory.json",
        cache=args.cache,
    )


def _kinds(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        told = ", ".join(KINDS)
        raise argparse.ArgumentTypeError(f"there is no workload {unknown[0]!r}; there are {told}")
    return tuple(kind for kind in KINDS if kind in names)


def _above_0(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
