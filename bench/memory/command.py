"""`lorry bench memory`: the waste of pages, and the economy against lru and a static split.

Three parts, each alone with `--only`: waste (arithmetic on four models' layouts), simulated (a 7B
model on a GPU) and live (servers on this machine). Owns their order, what is printed and written,
and the exit code: 1 when a target is missed or a part failed; a quick run claims nothing. A run
that is no whole result is written below build/.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ..attempts import Attempts
from ..machine import describe_machine, tell_hardware
from ..server_process import ServerFailed
from ..slo.live import ServerUnfit, server_flags
from ..slo.rates import NoCapacity
from ..throughput.child import ChildFailed
from .document import Report, last_line, make_document, misses, write
from .live import LiveStudy, LiveUnfit, run_live
from .live_world import LiveWorld
from .options import BUILD, PARTS, RESULTS, Options, parse
from .rows import MemoryCell
from .simulated import cell_of, run_simulated
from .table import again_lines, ceiling_lines, draw_half, draw_waste, waste_lines
from .waste import measure_waste
from .workloads import SIMULATED

PART_FAILURES = (
    *(ServerFailed, ServerUnfit, ChildFailed, NoCapacity),
    *(LiveUnfit, LorryClientError, OSError),
)


def main(argv: Sequence[str]) -> int:
    options, console = parse(argv), make_console()
    return conclude(run(options, console), options, console)


def run(options: Options, console: Console) -> Report:
    machine, load_before = describe_machine(), os.getloadavg()[0]
    tell_hardware(machine, load_before, console)
    say = partial(_say, console)
    parts = Attempts(PARTS, wanted=options.parts, ends=PART_FAILURES, tell=say)
    waste = parts.attempt("waste", measure_waste)
    # The live servers before the simulator: they mind a warm machine, it does not.
    live = parts.attempt("live", lambda: _live(options, console))
    simulated = parts.attempt("simulated", lambda: _simulated(options, console))
    return Report(
        command=options.command,
        is_quick=options.is_quick,
        waste=waste,
        simulated=simulated,
        live=live,
        not_run=parts.not_run,
        failed=tuple(parts.failed),
        setting={
            "flags": server_flags(options.place),
            "link_bytes_per_s": options.link_bytes_per_s,
            "plan": options.live,
        },
        machine=machine,
        load_before=load_before,
        took_s=parts.took_s,
    )


def _live(options: Options, console: Console) -> LiveStudy:
    world = LiveWorld(options.place, options.cache, link_bytes_per_s=options.link_bytes_per_s)
    return run_live(options.live, world, tell=partial(_say, console))


def _simulated(options: Options, console: Console) -> list[MemoryCell]:
    rows = run_simulated(
        options.seeds,
        kinds=options.kinds,
        size=replace(SIMULATED, num_requests=options.num_simulated),
        tell=partial(_say, console),
    )
    return [cell_of(row) for row in rows]


def conclude(report: Report, options: Options, console: Console) -> int:
    """Prints and writes; the exit code."""
    say = partial(_say, console)
    if report.waste is not None:
        for line in waste_lines(report.waste):
            say(line)
        console.print(draw_waste(report.waste))
    if report.live is not None:
        for line in ceiling_lines(report.live):
            say(line)
    for name, cells in report.halves.items():
        console.print(draw_half(name, cells))
    for line in again_lines(make_document(report)["again"]):
        say(line)
    wrong = [*report.failed, *misses(report)]
    for line in wrong:
        console.print(f"MISSED: {line}", style="red", markup=False, highlight=False)
    if report.is_quick:
        say("A quick run claims nothing: of these only a part that failed counts.")
    result = options.result
    if report.failed and result.parent == RESULTS:
        result = BUILD / result.name
    raw = result.with_suffix("") / options.raw.name
    write(report, result, raw)
    say(f"written: {result}, {raw}")
    print(json.dumps(last_line(report)), flush=True)
    return 1 if (report.failed if report.is_quick else wrong) else 0


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
