"""`lorry bench coldstart`: three ways to start a cold adapter, the choice, and the cached ideal.

Owns the order of a run from the files to the result, what is printed (ceiling, rows, one JSON line
last) and the exit code: 1 when a cell is no result or a target is missed. A run that is quick, or
leaves something out, or failed, is written below build/.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ..machine import describe_machine
from ..server_process import ServerFailed
from ..slo.command import tell_hardware
from ..slo.live import ServerUnfit
from ..slo.plain import plain
from ..slo.rates import NoCapacity
from ..slo.stamp_file import write_stamps
from ..throughput.child import ChildFailed
from .document import Report, last_line, make_document, misses, not_counted
from .options import BUILD, RESULTS, Options, parse
from .pictures import draw_pictures
from .places import OutOfPlace
from .points import figures_by_point, single_cells
from .study import run_study
from .table import ceiling_lines, draw_points, draw_rows
from .world import LiveWorld

ENDS = (ServerFailed, ServerUnfit, ChildFailed, LorryClientError, NoCapacity, OutOfPlace)
Draw = Callable[[Path, Report], None]


def main(argv: Sequence[str]) -> int:
    options, console = parse(argv), make_console()
    try:
        report = run(options, console)
    except ENDS as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    return conclude(report, options, console)


def run(options: Options, console: Console) -> Report:
    """Everything that is measured."""
    began_s = time.perf_counter()
    machine, load_before = describe_machine(), os.getloadavg()[0]
    tell_hardware(machine, load_before, console)
    with tempfile.TemporaryDirectory(prefix="lorry-coldstart-") as stores:
        world = LiveWorld(
            *(options.place, options.sizes, options.cache, Path(stores)),
            num_helpers=options.num_helpers,
        )
        setting = world.setting()
        say = partial(_say, console)
        say(f"servers: {setting['model']}; {' '.join(setting['flags'])}")
        study = run_study(options.sizes, world, tell=say)
    return Report(
        command=options.command,
        is_quick=options.is_quick,
        sizes=options.sizes,
        study=study,
        model=setting["model"],
        setting=setting,
        machine=machine,
        load_before=load_before,
        wall_s=time.perf_counter() - began_s,
    )


def conclude(
    report: Report, options: Options, console: Console, *, draw: Draw = draw_pictures
) -> int:
    """Prints and writes what was measured; the exit code."""
    rows, say = report.rows, partial(_say, console)
    for line in ceiling_lines(rows):
        say(line)
    console.print(draw_rows(rows))
    single = single_cells(report.study.cells)
    for name in dict.fromkeys(cell.row.name for cell in single):
        cells = [cell for cell in single if cell.row.name == name]
        console.print(draw_points(figures_by_point(cells, report.sizes.points)))
    for line in not_counted(rows):
        say(line)
    failed, missed = report.study.failures, misses(report, rows)
    for kind, lines in (("FAILED", failed), ("MISSED", missed)):
        for line in lines:
            console.print(f"{kind}: {line}", style="red", markup=False, highlight=False)
    if report.is_quick:
        say("A quick run claims nothing: of these only what failed counts.")
    result, plots = options.result, options.plots
    if failed and result.parent == RESULTS:
        result, plots = BUILD / result.name, BUILD
    write(report, result)
    draw(plots, report)
    say(f"written: {result}, plots in {plots}")
    print(json.dumps(last_line(report, rows)), flush=True)
    return 1 if failed or missed else 0


def write(report: Report, result: Path) -> None:
    """The document; beside it every request's stamps, and what the server told of each."""
    folder = result.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*-round*.jsonl.gz"):
        old.unlink()  # of a run before
    told: list[dict[str, Any]] = []
    for cell in report.study.cells:
        name = f"{cell.row.name}-{cell.label.replace(' ', '-')}-round{cell.round_idx + 1}"
        path = folder / f"{name}.jsonl.gz"
        write_stamps(path, cell.answered.run, cell.workload, machine=report.machine)
        requests = zip(cell.workload.requests, cell.answered.told, strict=True)
        told += [
            {"cell": name, "adapter": request.adapter, **plain(one)} for request, one in requests
        ]
    lines = (json.dumps(line, separators=(",", ":")) for line in told)
    (folder / "told.jsonl").write_text("".join(f"{line}\n" for line in lines))
    result.write_text(json.dumps(make_document(report), indent=1) + "\n")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
