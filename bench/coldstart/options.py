"""The options of `lorry bench coldstart`: a command line in, one frozen record out.

Owns what a quick run and a GPU leave out, and where results go: only a whole run on a CPU, whose
link has the ratios that are asked for, writes where quoted results lie. Called by command.py.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..machine import ROOT_DIR
from ..slo.fleet import CACHE_DIR
from ..throughput.workload import Place
from .sizes import CACHED, FULL, LABELS, PARTS, QUICK, Sizes, on_own_link

RESULTS = ROOT_DIR / "bench" / "results"
BUILD = ROOT_DIR / "build" / "coldstart"
# On two cores one computes and the other helps; more cores would only make the ratios other ones.
CPU_THREADS, CPU_HELPERS = 1, 1
ANY_HELPERS = -1  # as many as the server finds cores for


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    sizes: Sizes
    is_quick: bool
    place: Place
    num_helpers: int
    command: str  # as it was typed
    result: Path
    plots: Path
    cache: Path  # of the model and the adapters

    @property
    def raw(self) -> Path:
        """Folder of every request's stamps."""
        return self.result.with_suffix("")


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench coldstart", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one ratio, one round: 3 minutes; claims nothing")
    add("--only", choices=PARTS, action="append", help="this part; may be repeated")
    add("--ratios", type=_ratios, help="of the link, of those there are: 0.35,1")
    add("--labels", type=_labels, help=f"servers, by commas, {CACHED} among them")
    add("--device", default="cpu", help="a GPU has a link of its own, and one ratio")
    add("--dtype", default="bfloat16")
    add("--result", type=Path, help="default: bench/results/coldstart.json; not whole: build/")
    add("--cache", type=Path, default=CACHE_DIR, help="of the model and the adapters")
    args = parser.parse_args(argv)
    on_cpu = args.device.partition(":")[0] == "cpu"
    sizes = QUICK if args.quick else FULL
    if not on_cpu:
        sizes = on_own_link(sizes)
    rows = tuple(
        row
        for row in sizes.rows
        if row.part in (args.only or PARTS) and row.ratio in (args.ratios or sizes.ratios)
    )
    if not rows:
        told = ", ".join(f"{row.part} at {row.ratio:g}" for row in sizes.rows)
        parser.error(f"--only and --ratios leave no row; there are {told}")
    is_whole = rows == FULL.rows and args.labels is None
    folder = RESULTS if is_whole else BUILD
    result = args.result or folder / "coldstart.json"
    return Options(
        sizes=replace(sizes, rows=rows, labels=args.labels or sizes.labels),
        is_quick=args.quick,
        place=Place(args.device, args.dtype, num_threads=CPU_THREADS),
        num_helpers=CPU_HELPERS if on_cpu else ANY_HELPERS,
        command=shlex.join(["lorry", "bench", "coldstart", *argv]),
        result=result,
        plots=result.parent,
        cache=args.cache,
    )


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _labels(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in LABELS]:
        told = ", ".join(LABELS)
        raise argparse.ArgumentTypeError(f"there is no server {unknown[0]!r}; there are {told}")
    if CACHED not in names:
        raise argparse.ArgumentTypeError(f"{CACHED} must be among them: all is compared with it")
    return tuple(label for label in LABELS if label in names)
