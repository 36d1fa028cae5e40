"""`lorry bench step`: one decode step of a real runner beside its floor, base and with adapters.

Owns the order of the run and what is printed: the ceiling first, then what was measured, then
one JSON line. In one process: the engine's loop is in what is quoted, the service and the wire are
not (`lorry bench throughput` has those).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from ...server.cli_output import console as make_console
from ...server.execution.batch import StepRow
from ...server.execution.runner import Runner
from ..bandwidth import copy_bytes_per_s
from ..machine import describe_machine
from .document import Report, StepTimes, draw_rows, kernel_lines, make_document
from .engine_world import engine_ms
from .floors import Floor, StepLoad, floor_of
from .kernel_times import KernelTimes
from .profiler import profile_steps
from .proof import check_step
from .shapes import SHAPES, StepShape
from .timing import BrokenStep, overlapped_ms, plain_ms
from .world import StepWorld, make_world

RESULTS = Path(__file__).parent.parent / "results"
NUM_WARM = 5
# The ways take turns, so that a clock that falls is not one way's misfortune.
NUM_TURNS = 3


@dataclass(frozen=True, slots=True)
class Options:
    shape: StepShape
    load: StepLoad
    device: torch.device
    num_steps: int  # timed, of each way in each turn
    kernels: str
    graphs: bool  # whether decode steps are recorded, on a GPU
    compiled: bool  # whether the layers' glue is
    result: Path | None


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    console = make_console()
    document: dict[str, Any] = {}
    try:
        for report in run(options, console):
            document = make_document(report)
            _write(document, options.result)  # a run that is ended later has shown that much
    except BrokenStep as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    console.print(draw_rows(document["rows"]))
    for line in kernel_lines(document["kernels"]):
        console.print(line, markup=False, highlight=False)
    print(json.dumps(document), flush=True)
    return 0


def _write(document: Mapping[str, Any], path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="lorry bench step", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", choices=SHAPES, help="default: llama-8b, on a CPU tiny")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--batch", type=int, default=64, help="requests")
    parser.add_argument("--context", type=int, default=512, help="tokens of each")
    parser.add_argument("--adapters", type=int, default=64, help="distinct ones in a step")
    parser.add_argument("--rank", type=int, default=16, help="of every adapter, on all linears")
    parser.add_argument("--steps", type=int, help="of each kind in each of 3 turns")
    parser.add_argument("--kernels", default="auto", help="as `lorry serve` names them")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel by itself")
    parser.add_argument("--compile-layers", action="store_true", help="as `lorry serve`; a GPU's")
    parser.add_argument("--result", type=Path, help="on a GPU: bench/results/step-cuda.json")
    args = parser.parse_args(argv)
    is_cuda = args.device.partition(":")[0] == "cuda"
    if not 1 <= args.adapters <= args.batch:
        parser.error(f"--adapters is {args.adapters}; it must be 1 to --batch ({args.batch})")
    steps = args.steps if args.steps is not None else (30 if is_cuda else 3)
    if min(args.context, args.rank, steps) < 1:
        parser.error("--context, --rank and --steps are at least 1")
    if args.compile_layers and not is_cuda:
        parser.error("--compile-layers is for a GPU")
    return Options(
        shape=SHAPES[args.shape or ("llama-8b" if is_cuda else "tiny")],
        load=StepLoad(args.batch, args.context, args.dtype, (args.rank,) * args.adapters),
        device=torch.device(args.device),
        num_steps=steps,
        kernels=args.kernels,
        graphs=not args.no_graphs,
        compiled=args.compile_layers,
        result=args.result or (RESULTS / "step-cuda.json" if is_cuda else None),
    )


def run(options: Options, console: Console) -> Iterator[Report]:
    """Ceiling, proof, then all ways in turns; what is known after each turn, then the whole."""
    shape, load, device = options.shape, options.load, options.device
    bytes_per_s = copy_bytes_per_s(device)
    floors = _floors(shape, load)
    console.print(
        f"Copies move {bytes_per_s / 1e9:.0f} GB/s; {shape.name}, {load.dtype}, batch "
        f"{load.batch}, context {load.context}: a base step takes at least "
        f"{floors['base'].ms(bytes_per_s):.3f} ms, with {len(load.ranks)} adapters "
        f"{floors['lora'].ms(bytes_per_s):.3f}",
        highlight=False,
    )
    world = make_world(
        shape,
        load,
        device,
        kernels=options.kernels,
        graphs=options.graphs,
        compiled=options.compiled,
    )
    world.attach_all()
    check_step(world, load.context)
    rows = {way: world.rows(load.context, with_adapters=way == "lora") for way in floors}
    for way in floors:  # in both loops: what they take of memory they take now
        plain_ms(world.runner, rows[way], NUM_WARM)
        overlapped_ms(world.runner, rows[way], NUM_WARM)
    world.detach_all()
    reserved = _reserved_bytes(device)
    report = Report(
        shape=shape,
        load=load,
        device=str(device),
        kernels_name=options.kernels,
        bytes_per_s=bytes_per_s,
        floors=floors,
        times={way: StepTimes((), ()) for way in floors},
        engine_ms={},
        kernels={},
        notes=_notes(world),
        machine=describe_machine(),
        reserved_bytes=(reserved, reserved),
    )
    for _ in range(NUM_TURNS):
        turn = _take_turn(world, rows, options)
        times = {way: report.times[way] + turn[way] for way in floors}
        report = replace(report, times=times, reserved_bytes=(reserved, _reserved_bytes(device)))
        if report.reserved_bytes[1] > reserved:
            raise BrokenStep(f"timed steps took {report.reserved_bytes} bytes, before and after")
        yield report
    report = replace(report, kernels=_profile(world, rows))
    for way in ("base", "lora"):
        engine = engine_ms(world, load, options.num_steps, with_adapters=way == "lora")
        report = replace(report, engine_ms={**report.engine_ms, way: engine})
    yield report


def _take_turn(
    world: StepWorld, rows: Mapping[str, list[StepRow]], options: Options
) -> dict[str, StepTimes]:
    """Every way once, the base's while no adapter is attached."""
    turn = {"base": _time(world.runner, rows["base"], options)}
    world.attach_all()
    turn |= {way: _time(world.runner, rows[way], options) for way in ("lora", "base_on")}
    world.detach_all()
    return turn


def _profile(world: StepWorld, rows: Mapping[str, list[StepRow]]) -> dict[str, KernelTimes]:
    """By way, where there is a profiler to ask."""
    found: dict[str, KernelTimes] = {}
    for way, step in rows.items():
        if way == "lora":
            world.attach_all()
        kernels = profile_steps(world.runner, step)
        if kernels is not None:
            found[way] = kernels
    world.detach_all()
    return found


def _floors(shape: StepShape, load: StepLoad) -> dict[str, Floor]:
    """By way, in the order of the table; adapters that no row uses cost nothing."""
    base = floor_of(shape, replace(load, ranks=()))
    return {"base": base, "lora": floor_of(shape, load), "base_on": base}


def _time(runner: Runner, rows: list[StepRow], options: Options) -> StepTimes:
    plain_ms(runner, rows, NUM_WARM)
    return StepTimes(
        overlapped_ms=tuple(overlapped_ms(runner, rows, options.num_steps + 1)),
        plain_ms=tuple(plain_ms(runner, rows, options.num_steps)),
    )


def _reserved_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _notes(world: StepWorld) -> tuple[str, ...]:
    """The model's and the runner's: which steps are recorded, or why none is."""
    return tuple(note for note in (*world.loaded.notes, world.runner.info().self_proof) if note)
