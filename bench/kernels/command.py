"""`lorry bench kernels`: a layer's LoRA, beside torch, PEFT's loop, vLLM and SGLang.

Owns the order of the run (ceiling, cases, table, one line of JSON), its options and the exit
code: 1 when our own code gave a wrong result or broke. Peers that are not there are named with
the reason. The file is written after every row: a run that is ended early leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...server.cli_output import console as make_console
from ..machine import describe_machine
from .cases import CPU, QUICK, Case, pick_cases
from .document import Report, draw_rows, make_document
from .measure import Bench, DeviceBroken
from .ours import OURS
from .rivals import find_peers
from .rivals.tables import SHIPPED, unpack
from .rows import Row
from .torch_ways import TORCH_WAYS
from .way import NamedWay

RESULTS = Path(__file__).parent.parent / "results"
# Of the cases that a CPU measures by default; those that no time is left for are named.
CPU_MINUTES = 2.0
# The ways of the quoted figures; deployments for rank 256 and torch's are not among them.
QUICK_IMPLS = ("triton", "vllm", "vllm-tuned", "sglang-c16", "sglang-c128", "sglang-*-tuned")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Options:
    """One run, as it was asked for."""

    device: torch.device
    dtype: str  # of DTYPES
    cases: tuple[Case, ...]
    impls: tuple[str, ...]  # patterns; empty: all
    minutes: float  # after which no further way is begun
    tune_minutes: float  # spent on tuning tables of the peers before anything is measured
    num_threads: int  # on a CPU
    result: Path
    tables: Path  # tuned ones of the peers: read, or written by tuning


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    console = make_console()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        console.print("There is no CUDA device here; nothing was measured", style="yellow")
        return 1
    return conclude(run(options, console), options, console)


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench kernels", description=__doc__)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="of weights and rows")
    add("--quick", action="store_true", help="the cases of the quoted figures alone")
    add("--cases", help="shell patterns, by commas: llama-8b/decode-*,*-mixed; * is all of them")
    add("--impls", default="", help="shell patterns, by commas: triton,vllm*")
    add("--minutes", type=float, default=0, help="begin nothing after that; 0: no limit")
    add("--tune", type=float, default=0, metavar="MINUTES", help="tune the peers first (CUDA)")
    add("--tables", type=Path, default=SHIPPED, help="the peers' tuned tables")
    add("--threads", type=int, default=2, help="on a CPU")
    add("--result", type=Path, help="default: bench/results/kernels-DEVICE.json")
    args = parser.parse_args(argv)
    patterns = tuple(filter(None, (args.cases or "").split(",")))
    impls = tuple(filter(None, args.impls.split(",")))
    minutes = args.minutes
    if not patterns and args.device == "cpu":
        # All cases would take hours.
        patterns, minutes = CPU, minutes or CPU_MINUTES
    elif not patterns and args.quick:
        patterns, impls = QUICK, impls or QUICK_IMPLS
    cases = pick_cases(patterns)
    if not cases:
        parser.error(f"--cases {args.cases} matches none")
    return Options(
        device=torch.device(args.device),
        dtype=args.dtype,
        cases=cases,
        impls=impls,
        minutes=minutes,
        tune_minutes=args.tune,
        num_threads=args.threads,
        result=args.result or RESULTS / f"kernels-{args.device}.json",
        tables=args.tables,
    )


def wanted(ways: Sequence[NamedWay], impls: Sequence[str]) -> list[NamedWay]:
    return [
        way for way in ways if not impls or any(fnmatchcase(way.name, pattern) for pattern in impls)
    ]


def run(options: Options, console: Console) -> Report:
    """Everything that is measured; the file holds what is there so far."""
    began_s = time.perf_counter()
    bench, report = _set_up(options)
    console.print(
        f"Ceiling, one large copy: {bench.peak_gb_s:.1f} GB/s read and written", highlight=False
    )
    if options.device.type == "cuda":
        bench.broken = _tune_peers(options, console)
    if options.minutes:
        bench.deadline_s = time.perf_counter() + 60 * options.minutes
    for row in bench.run(options.cases):
        report = replace(report, rows=(*report.rows, row), wall_s=time.perf_counter() - began_s)
        write(make_document(report), options.result)
        _tell(row, console)
    missing = {**report.not_measured, **bench.left_out}
    return replace(
        report, not_measured=missing, wall_s=time.perf_counter() - began_s, is_whole=True
    )


def _set_up(options: Options) -> tuple[Bench, Report]:
    """The bench, its ceiling measured, and what is known before the first row."""
    machine = describe_machine()
    if options.device.type == "cpu":
        torch.set_num_threads(options.num_threads)
    peers = find_peers(options.device)
    # Torch's last: they are what there may be no time for.
    ways = wanted([*OURS[options.device.type], *peers.ways, *TORCH_WAYS], options.impls)
    bench = Bench(options.device, DTYPES[options.dtype], ways)
    bench.measure_ceiling()
    return bench, Report(
        device=options.device.type,
        dtype=options.dtype,
        peak_gb_s=bench.peak_gb_s,
        cache_bytes=bench.cache_bytes,
        rows=(),
        not_measured=peers.missing,
        ways={way.name: way.note for way in ways},
        versions=peers.versions,
        machine=machine,
        wall_s=0.0,
        is_whole=False,
    )


def _tune_peers(options: Options, console: Console) -> str:
    """Tables made, or those that are there put in their place; what broke the device, if it did."""
    if not options.tune_minutes:
        unpack(options.tables)
        return ""
    from .rivals.tune import tune

    dtype = DTYPES[options.dtype]
    try:
        done = tune(
            options.cases, options.device, dtype, options.tune_minutes, shipped=options.tables
        )
    except DeviceBroken as error:
        return f"the device had been broken: {error}"
    console.print(f"Tuned the peers for {done} of {len(options.cases)} cases", highlight=False)
    return ""


def _tell(row: Row, console: Console) -> None:
    figure = row.not_measured if row.ms is None else f"{row.ms:.4f} ms, {row.fraction_of_peak:.0%}"
    console.print(f"{row.case} {row.impl}: {figure}", markup=False, highlight=False)


def conclude(report: Report, options: Options, console: Console) -> int:
    """Prints and writes what was measured; the exit code."""
    document = make_document(report)
    console.print(draw_rows(report.rows))
    for name, why in report.not_measured.items():
        console.print(f"Not measured, {name}: {why}", markup=False, highlight=False)
    for line in document["failures"]:
        console.print(f"FAILED: {line}", style="red", markup=False, highlight=False)
    write(document, options.result)
    print(json.dumps(document), flush=True)
    return 1 if document["failures"] else 0


def write(document: Mapping[str, Any], path: Path) -> None:
    """At once: whoever ends the run meanwhile leaves the file of the row before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=2) + "\n")
    part.replace(path)
