"""`lorry bench scale`: thousands of adapters registered, thousands active, and loads under way.

Owns the order of the parts, what they are given (stores, flags, the pool's size), what is printed
and written, and the exit code: 1 when a target is missed or a part failed. A quick run claims
nothing and is written below build/.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...adapters.image import ImageSpec
from ...proto.errors import LorryClientError
from ...server.cli_output import console as make_console
from ...server.config import ModelConfig
from ...server.execution.meta_model import read_model_memory
from ...server.execution.model import load_model
from ..machine import ROOT_DIR, describe_machine, tell_hardware
from ..memory.pool_bytes import pool_bytes_for
from ..server_process import ServerFailed
from ..slo.fleet import CACHE_DIR, FleetFiles, prepare_fleet
from ..slo.live import ServerUnfit, default_place
from ..slo.plain import plain
from ..slo.rates import NoCapacity
from ..throughput.workload import Place
from ..workload.records import WorkloadAdapter
from .active import measure_active
from .crossing import Crossing, NotQuiet, TooFewSteps, measure_crossing
from .document import (
    Parts,
    Report,
    crossing_figures,
    crossing_misses,
    figures,
    make_document,
    misses,
)
from .registered import Stores, measure_registered
from .sizes import (
    FULL,
    LINK_S,
    MAX_RUNNING,
    NUM_HOT,
    NUM_NEW_TOKENS,
    NUM_PROMPT_TOKENS,
    POOL_ADAPTERS,
    QUICK,
    RANK,
    SERVER_FLAGS,
    Sizes,
)
from .stock import Kind, image_pages, one_site_of, prepare_store, read_template

RESULT = ROOT_DIR / "bench" / "results" / "scale.json"
CROSSING_RESULT = RESULT.with_name("scale-crossing.json")
BUILD = ROOT_DIR / "build" / "scale"
SHORT_HOST = 4  # one image in so many fits into host memory, in the second row
ENDS = (ServerFailed, ServerUnfit, NoCapacity, TooFewSteps, NotQuiet, LorryClientError)
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class World:
    """What is served, and how large it is."""

    files: FleetFiles
    place: Place
    spec: ImageSpec
    page_bytes: int
    adapter_pages: int  # of one that is asked for
    pool_bytes: int  # for POOL_ADAPTERS and the KV of a full batch

    @property
    def adapter_bytes(self) -> int:
        return self.adapter_pages * self.page_bytes

    @property
    def flags(self) -> tuple[str, ...]:
        place = self.place
        return (
            *("--device", place.device, "--dtype", place.dtype),
            *("--threads", str(place.num_threads), "--pool-bytes", str(self.pool_bytes)),
            *SERVER_FLAGS,
        )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lorry bench scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of all; claims nothing")
    parser.add_argument("--result", type=Path, help="default: bench/results/scale.json")
    parser.add_argument(
        "--crossing", action="store_true", help="the last part alone, into scale-crossing.json"
    )
    parser.add_argument("--cache", type=Path, default=BUILD, help="of the stores")
    args = parser.parse_args(argv)
    console = make_console()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    machine, load_before, began_s = describe_machine(), os.getloadavg()[0], time.perf_counter()
    tell_hardware(machine, load_before, console)
    sizes = QUICK if args.quick else FULL
    try:
        world = make_world()
        if args.crossing:
            found = cross(world, sizes, _active_store(world, sizes, args.cache, tell), tell)
            return _conclude_crossing(
                found,
                args.result or (BUILD / "quick.json" if args.quick else CROSSING_RESULT),
                {
                    "command": shlex.join(["lorry", "bench", "scale", *argv]),
                    "quick": args.quick,
                    "model": world.files.model,
                    "setting": _setting(world),
                    "machine": machine,
                    "load_average_before": load_before,
                },
                tell,
            )
        parts = measure(world, sizes, args.cache, tell)
    except ENDS as failure:
        console.print(str(failure), style="red", markup=False, highlight=False)
        return 1
    report = Report(
        command=shlex.join(["lorry", "bench", "scale", *argv]),
        is_quick=args.quick,
        sizes=sizes,
        model=world.files.model,
        setting=_setting(world),
        parts=parts,
        machine=machine,
        load_before=load_before,
        wall_s=time.perf_counter() - began_s,
    )
    return conclude(report, args.result or (BUILD / "quick.json" if args.quick else RESULT), tell)


def conclude(report: Report, path: Path, tell: Tell) -> int:
    """Writes the file, ends with the line."""
    for name, value in figures(report).items():
        tell(f"{name}: {value}")
    missed = misses(report)
    for line in missed:
        tell(f"MISSED: {line}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(make_document(report), indent=2) + "\n")
    print(json.dumps(figures(report)), flush=True)
    return 1 if missed else 0


def make_world() -> World:
    place = default_place()
    files = prepare_fleet([WorkloadAdapter("template", RANK, 1.0)], CACHE_DIR)
    torch.set_num_threads(place.num_threads)
    loaded = load_model(ModelConfig(str(files.base), dtype=place.dtype))
    template = read_template(files.adapters["template"])
    adapter_pages = image_pages(files.base, loaded.image_spec, template)
    kv_pages = -(-(NUM_PROMPT_TOKENS + NUM_NEW_TOKENS) // loaded.geometry.tokens_per_page)
    num_pages = POOL_ADAPTERS * adapter_pages + MAX_RUNNING * kv_pages
    memory = read_model_memory(files.base, dtype=place.dtype)
    pool_bytes = pool_bytes_for(num_pages, memory, device=place.device)
    spec = loaded.image_spec
    return World(files, place, spec, loaded.page_bytes, adapter_pages, pool_bytes)


def measure(world: World, sizes: Sizes, cache: Path, tell: Tell) -> Parts:
    base, template = world.files.base, read_template(world.files.adapters["template"])
    hot, many = Kind("hot", NUM_HOT, template), Kind("hot", sizes.num_active, template)
    idle = Kind("idle", sizes.num_registered - NUM_HOT, one_site_of(template, "q_proj"))

    def store(folder: str, *kinds: Kind) -> Path:
        return prepare_store(cache / folder, base, world.spec, kinds, tell=tell)

    stores = Stores(store("few", hot), store("again", hot), store("many", hot, idle))
    active_store = store("active", many)
    tell(f"ceiling: five adapters, the same server and load; flags {' '.join(world.flags)}")
    enough, short = _image_bytes(world, sizes) * 5 // 4, _image_bytes(world, sizes) // SHORT_HOST

    def with_host(host_bytes: int) -> tuple[str, ...]:
        return (*world.flags, "--host-bytes", str(host_bytes))

    return Parts(
        registered=measure_registered(base, stores, hot.names, world.flags, sizes, tell=tell),
        active=measure_active(base, active_store, many.names, with_host(enough), sizes, tell=tell),
        short=measure_active(base, active_store, many.names, with_host(short), sizes, tell=tell),
        crossing=cross(world, sizes, active_store, tell),
    )


def cross(world: World, sizes: Sizes, store: Path, tell: Tell) -> Crossing:
    """Loads beside the steps of others, all images in host memory."""
    template = read_template(world.files.adapters["template"])
    return measure_crossing(
        world.files.base,
        store,
        Kind("hot", sizes.num_active, template).names,
        (*world.flags, "--host-bytes", str(_image_bytes(world, sizes) * 5 // 4)),
        sizes,
        link_bytes_per_s=world.adapter_bytes / LINK_S,
        adapter_s=LINK_S,
        tell=tell,
    )


def _active_store(world: World, sizes: Sizes, cache: Path, tell: Tell) -> Path:
    many = Kind("hot", sizes.num_active, read_template(world.files.adapters["template"]))
    return prepare_store(cache / "active", world.files.base, world.spec, [many], tell=tell)


def _image_bytes(world: World, sizes: Sizes) -> int:
    return sizes.num_active * world.adapter_bytes


def _conclude_crossing(
    found: Crossing, path: Path, setting: Mapping[str, object], tell: Tell
) -> int:
    line = crossing_figures(found)
    missed = [] if setting["quick"] else crossing_misses(line)
    for text in missed:
        tell(f"MISSED: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    document = plain({**line, "misses": missed, **setting, "crossing": found})
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({"bench": "scale", **line}), flush=True)
    return 1 if missed else 0


def _setting(world: World) -> dict[str, object]:
    return {
        "flags": list(world.flags),
        "rank": RANK,
        "adapter_pages": world.adapter_pages,
        "adapter_bytes": world.adapter_bytes,
        "pool_adapters": POOL_ADAPTERS,
        "prompts": "no two begin alike; the prefix cache is on",
    }
