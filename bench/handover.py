"""The hand-over to helpers on a GPU: whether answers are right, and how long the way is.

Owns one adapter in a slab of its own, real helper processes, and the result: what a look at a
helper's word takes, rows out and answers in by themselves, and an errand there and back by rows.
Nothing is timed before it was right. `python -P -m lorry.bench.handover`; a part of `make gpu`.
Without a GPU it refuses: an interpreted kernel has no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.host_tier import HeldImage
from ..adapters.image import ImageSpec, Site, SiteRank, plan_image
from ..adapters.packing import pack_image
from ..kernels.handover import (
    Shard,
    Slip,
    await_add,
    host_memory,
    make_post,
    outcome,
    send_rows,
)
from ..server.execution.cold_start.cores import AUTO, choose_cores
from ..server.execution.cold_start.crew import SharedCells
from ..server.execution.cold_start.device_handover import LOOKS_PER_S, DeviceHelpers
from ..server.execution.cold_start.device_memory import MappedMemory
from ..server.execution.cold_start.handover import Errand
from ..server.execution.cold_start.shared import make_memory, map_memory
from ..server.execution.cold_start.staff import Spawn, spawn_helper
from .machine import describe_machine

SCALE = 2.0
UP_WITHIN_S = 60.0
MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True, slots=True)
class Size:
    """Llama-3.1-8B's query, key and value, unless a test wants less."""

    in_width: int = 4096
    out_widths: tuple[int, ...] = (4096, 1024, 1024)
    rank: int = 16
    rows: tuple[int, ...] = (1, 16, 64, 256, 1024)
    repeats: int = 20
    looks: int = 20_000
    page_elements: int = 1 << 16


@dataclass(frozen=True, slots=True)
class Row:
    num_rows: int
    send_us: float  # rows to host memory, and the word
    add_us: float  # answers that are there: from host memory to the outs
    there_and_back_us: float
    num_helpers: int  # that share the rows
    largest_error: float  # over the largest value, against fp32


class World:
    """One adapter, in host memory only."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        self.sites = tuple(
            Site(f"layers.0.{i}", 0, size.in_width, width)
            for i, width in enumerate(size.out_widths)
        )
        spec = ImageSpec(size.page_elements, str(dtype).removeprefix("torch."), self.sites)
        layout = plan_image(spec, [SiteRank(i, size.rank, SCALE) for i in range(len(self.sites))])
        self._generator = torch.Generator().manual_seed(0)
        self.factors = {
            i: (
                self._random(size.rank, size.in_width) / size.in_width**0.5,
                self._random(site.out_width, size.rank) / size.rank**0.5,
            )
            for i, site in enumerate(self.sites)
        }
        pages = pack_image(spec, layout, self.factors)
        shared = make_memory("lorry-bench-slab", pages.numel() * dtype.itemsize)
        memory = map_memory(shared).view(dtype).view(pages.shape)
        memory.copy_(pages)
        self.cells = SharedCells(shared.fd, memory)
        self.image = HeldImage(layout, memory, tuple(range(len(pages))), is_loose=False)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.dtype)

    def rows(self, num_rows: int) -> Tensor:
        return self._random(num_rows, self.size.in_width).to(self.device)

    def outs(self, num_rows: int) -> list[Tensor]:
        """Columns of one buffer, as a merged projection has them."""
        whole = self._random(num_rows, sum(self.size.out_widths)).to(self.device)
        return list(whole.split(self.size.out_widths, dim=1))

    def expected(self, hidden_TI: Tensor, outs_TO: Sequence[Tensor]) -> list[Tensor]:
        x_TI = hidden_TI.cpu().double()
        return [
            out_TO.cpu().double() + SCALE * (x_TI @ a_RI.double().T @ b_OR.double().T)
            for out_TO, (a_RI, b_OR) in zip(outs_TO, self.factors.values(), strict=True)
        ]


def measure(
    world: World, cores: Sequence[int], *, spawn: Spawn = spawn_helper
) -> tuple[list[Row], float]:
    """A row for each number of rows, and what a look takes, in microseconds.

    Raises:
        RuntimeError: an answer did not come, or was wrong.
    """
    size = world.size
    helpers = DeviceHelpers(
        world.cells,
        world.sites,
        cores,
        num_layers=1,
        max_tokens=max(size.rows),
        device=world.device,
        spawn=spawn,
    )
    try:
        num_up = helpers.crew.await_up(UP_WITHIN_S)
        if num_up < len(cores):
            raise RuntimeError(f"{num_up} of {len(cores)} helpers are up")
        helpers.open(0, world.image)
        rows = [_row(world, helpers, num_rows) for num_rows in size.rows]
    finally:
        helpers.stop()
    return rows, look_us(world)


def _row(world: World, helpers: DeviceHelpers, num_rows: int) -> Row:
    hidden_TI, outs_TO = world.rows(num_rows), world.outs(num_rows)
    expected = world.expected(hidden_TI, outs_TO)
    errand = Errand(0, tuple(range(len(outs_TO))), 0, num_rows)

    def run() -> None:
        ticket = helpers.send(errand, hidden_TI)
        if ticket is None:
            raise RuntimeError(f"{num_rows} rows were not asked for")
        ticket.add(outs_TO)
        settle(world.device)
        if helpers.lost():
            raise RuntimeError(f"the answer for {num_rows} rows did not come")

    run()
    error = max(
        float((out.cpu().double() - wanted).abs().max() / wanted.abs().max())
        for out, wanted in zip(outs_TO, expected, strict=True)
    )
    if not error <= MAX_ERROR[world.dtype]:
        raise RuntimeError(f"{num_rows} rows: an error of {error:.2g} of the largest value")
    whole_us = _median_us(run, world)
    send_us, add_us = _one_way(world, hidden_TI, outs_TO)
    return Row(num_rows, send_us, add_us, whole_us, len(helpers.crew.able(0)), error)


def _one_way(world: World, hidden_TI: Tensor, outs_TO: Sequence[Tensor]) -> tuple[float, float]:
    """Without helpers: one shard, whose answer lies there already."""
    num_rows = len(hidden_TI)
    mail = _Mail(world, [hidden_TI, *outs_TO])
    slip = Slip(1, 1, 0, (mail.shard(num_rows),))
    mail.words[1] = 1

    def send() -> None:
        send_rows(hidden_TI, mail.post, number=0, slip=slip)
        settle(world.device)

    def add() -> None:
        await_add(outs_TO, mail.post, number=0, slip=slip, max_polls=1)
        settle(world.device)

    try:
        times = _median_us(send, world), _median_us(add, world)
        if outcome(mail.post.slips, 0) != 1:
            raise RuntimeError("an answer that lies there was not seen")
        return times
    finally:
        mail.close()


def look_us(world: World) -> float:
    """Of a word that nobody writes: the time of as many looks, over their number."""
    outs_TO = world.outs(1)
    mail = _Mail(world, [world.rows(1), *outs_TO])
    epoch = 0

    def run() -> None:
        nonlocal epoch
        epoch += 1
        slip = Slip(epoch, epoch, 0, (mail.shard(1),))
        send_rows(world.rows(1), mail.post, number=0, slip=slip)
        await_add(outs_TO, mail.post, number=0, slip=slip, max_polls=world.size.looks)
        settle(world.device)
        if outcome(mail.post.slips, 0) != -epoch:
            raise RuntimeError("an answer that never came was added")

    try:
        return _median_us(run, world) / world.size.looks
    finally:
        mail.close()


class _Mail:
    """Words and data that the device sees, for tensors of these sizes."""

    def __init__(self, world: World, tensors: Sequence[Tensor]) -> None:
        self.post = make_post(1, world.device)
        sizes = [-(-t.numel() * t.element_size() // 64) * 64 for t in tensors]
        self._places = [64 + sum(sizes[:i]) for i in range(len(sizes))]
        memory = host_memory(64 + sum(sizes))
        self._mapped = [MappedMemory(part, world.device) for part in (memory, self.post.slips)]
        self.words = memory[:64].view(torch.int64)  # 0: go, 1: done

    def shard(self, num_rows: int) -> Shard:
        start = self._mapped[0].address
        rows, *answers = (start + place for place in self._places)
        return Shard(0, num_rows, rows, start, start + 8, tuple(answers))

    def close(self) -> None:
        for mapped in self._mapped:
            mapped.close()


def _median_us(run: Callable[[], None], world: World) -> float:
    """On the host's clock, up to where the device is done: launches are part of the way."""
    times: list[float] = []
    for _ in range(1 + world.size.repeats):
        began_s = time.perf_counter()
        run()
        times.append((time.perf_counter() - began_s) * 1e6)
    return statistics.median(times[1:])


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.handover", description=__doc__)
    parser.add_argument("--helpers", type=int, default=AUTO)
    parser.add_argument("--result", type=Path)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("lorry.bench.handover: torch sees no CUDA device; nothing was run", file=sys.stderr)
        return 2
    cores = choose_cores(os.sched_getaffinity(0), asked=args.helpers, num_device_threads=None)
    if not cores.helpers:
        print("lorry.bench.handover: no core is left for a helper", file=sys.stderr)
        return 2
    rows, one_look_us = measure(World(Size(), torch.device("cuda"), torch.bfloat16), cores.helpers)
    document = {
        "bench": "handover",
        "look_us": round(one_look_us, 3),
        "looks_per_s_assumed": LOOKS_PER_S,
        "rows": [{k: round(v, 4) for k, v in asdict(row).items()} for row in rows],
        "machine": asdict(describe_machine()),
    }
    print(f"a look at a helper's word: {one_look_us:.2f} us (assumed: {1e6 / LOOKS_PER_S:.2f})")
    for row in rows:
        print(
            f"{row.num_rows:5} rows: out {row.send_us:.0f} us, in {row.add_us:.0f} us, there and "
            f"back {row.there_and_back_us:.0f} us by {row.num_helpers} helpers"
        )
    if args.result is not None:
        args.result.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
