"""`lorry bench slo`: policies under load on live servers, judged by SLO attainment.

Owns the order of a run from the workload to the files, what is printed (ceiling, table, pairs,
one JSON line last) and the exit code: 1 when a cell is no result, and then nothing that is quoted
is replaced. What is measured and what follows from it is told by the other files of this folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ..machine import describe_machine, tell_hardware
from ..server_process import ServerFailed
from ..throughput.child import ChildFailed
from ..workload.errors import WorkloadError
from ..workload.file import write_workload
from ..workload.make import notes_of
from ..workload.records import WorkloadAdapter
from .document import make_document, make_line, stamps_path
from .fleet import FleetFiles, prepare_fleet, prepare_fleet_of
from .hands import LiveHands
from .live import ServerUnfit, live_servers, server_flags
from .options import Options, parse
from .pictures import draw_pictures
from .rates import NoCapacity
from .report import Report, Row, make_comparisons, make_rows
from .run import measure
from .source import take_workload
from .stamp_file import write_stamps
from .table import bounds_line, ceiling_line, comparison_lines, draw_rows, workload_lines
from .unloaded import SoloFailed

Draw = Callable[[Path, Report, Sequence[Row]], None]
ENDS = (
    ServerFailed,
    ServerUnfit,
    ChildFailed,
    LorryClientError,
    NoCapacity,
    SoloFailed,
    WorkloadError,
)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    console = make_console()
    try:
        report = run(options, console)
    except ENDS as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    return conclude(report, options, console)


def run(options: Options, console: Console) -> Report:
    """Everything that is measured."""

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    start_s = time.perf_counter()
    machine, load_before = describe_machine(), os.getloadavg()[0]
    tell_hardware(machine, load_before, console)
    workload = take_workload(options.source)
    for line in workload_lines(workload, notes_of(workload)):
        tell(line)
    files = _fleet(options, workload.adapters)
    flags = (*server_flags(options.place), *options.server_flags)
    tell(f"servers: {files.model}; {' '.join(flags)}")
    with live_servers(files, options.policies, flags) as servers:
        hands = LiveHands(servers, options.timeout_s)
        found = measure(workload, servers, hands, options.plan, now_s=time.perf_counter, tell=tell)
    return Report(
        command=options.command,
        is_quick=options.is_quick,
        policies=options.policies,
        model=files.model,
        workload=found.workload,
        rule=found.rule,
        capacity=found.capacity,
        offers=found.offers,
        cells=found.cells,
        place=options.place,
        flags=flags,
        machine=machine,
        load_before=load_before,
        wall_s=time.perf_counter() - start_s,
    )


def _fleet(options: Options, adapters: Sequence[WorkloadAdapter]) -> FleetFiles:
    if options.model is not None:
        return prepare_fleet_of(options.model, adapters, options.cache)
    return prepare_fleet(adapters, options.cache)


def conclude(
    report: Report, options: Options, console: Console, *, draw: Draw = draw_pictures
) -> int:
    """Prints and writes what was measured; the exit code."""
    rows = make_rows(report)
    lines = [bounds_line(report.rule), ceiling_line(report.capacity)]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    console.print(draw_rows(rows))
    for line in comparison_lines(make_comparisons(rows)):
        console.print(line, markup=False, highlight=False)
    if report.is_quick:
        console.print("A quick run: too few requests to say anything about these rates")
    for line in report.failures:
        console.print(f"FAILED: {line}", style="red", markup=False, highlight=False)
    result, plots = options.result, options.plots
    if report.failures:
        result, plots = options.failed, options.failed.parent
    write(report, result)
    if rows:
        draw(plots, report, rows)
    console.print(f"written: {result}, plots in {plots}", markup=False, highlight=False)
    print(json.dumps(make_line(report, rows)), flush=True)
    return 1 if report.failures else 0


def write(report: Report, result: Path) -> None:
    """The document, and beside it raw stamps and the workload that they are of."""
    folder = result.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-round*.jsonl.gz"):
        old.unlink()  # of a run before, with other loads
    write_workload(report.workload, folder / "workload.jsonl.gz")
    for cell in report.cells:
        offer = report.offers[cell.turn.offer_idx]
        path = stamps_path(folder, cell, offer)
        write_stamps(path, cell.run, offer.workload, machine=report.machine)
    document = make_document(report, folder=folder)
    result.write_text(json.dumps(document, indent=2) + "\n")
