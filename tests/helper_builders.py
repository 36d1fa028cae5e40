"""For tests of the helpers: a slab with adapters in it, and helpers that are threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from lorry.adapters.host_tier import HeldImage
from lorry.adapters.image import ImageSpec, Site, SiteRank, plan_image, tile_cols
from lorry.adapters.packing import pack_image
from lorry.kernels.lora import (
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    Workspace,
    add_lora,
    choose_backend,
)
from lorry.server.execution.cold_start.crew import SharedCells
from lorry.server.execution.cold_start.handover import Errand
from lorry.server.execution.cold_start.helper import Post, serve
from lorry.server.execution.cold_start.helpers import Helpers
from lorry.server.execution.cold_start.mailbox import Entry, Kind
from lorry.server.execution.cold_start.shared import Bell, make_memory, map_memory
from lorry.server.execution.placing import place_tiles
from lorry.tests.kernels_builders import assert_close

PAGE_ELEMENTS = 1024
NUM_LAYERS = 2
# Of each layer: two that share an input, and one with another; widths that are no multiple of 16.
WIDTHS = ((96, 72), (96, 40), (72, 96))
SITES = (
    *(
        Site(f"layers.{layer}.{idx}", layer, *widths)
        for layer in range(NUM_LAYERS)
        for idx, widths in enumerate(WIDTHS)
    ),
    Site("head", NUM_LAYERS, 96, 200),
)
WITHIN_S = 60.0  # of a test that would hang


class ColdSlab:
    """Cells that other processes could map, NaN where no image lies."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, num_cells: int = 160) -> None:
        self.dtype = dtype
        self.spec = ImageSpec(PAGE_ELEMENTS, str(dtype).removeprefix("torch."), SITES)
        shared = make_memory("test-slab", num_cells * PAGE_ELEMENTS * dtype.itemsize)
        memory = map_memory(shared).view(dtype).view(num_cells, PAGE_ELEMENTS).fill_(torch.nan)
        self.cells = SharedCells(shared.fd, memory)
        self.generator = torch.Generator().manual_seed(7)
        self._free: list[int] = torch.randperm(num_cells, generator=self.generator).tolist()

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def put(self, ranks: Mapping[int, int], *, scale: float = 1.5) -> HeldImage:
        """An adapter with these ranks by site, its pages anywhere."""
        layout = plan_image(self.spec, [SiteRank(site, r, scale) for site, r in ranks.items()])
        weights = {
            site: (
                self.random(rank, SITES[site].in_width) / SITES[site].in_width ** 0.5,
                self.random(SITES[site].out_width, rank) / rank**0.5,
            )
            for site, rank in ranks.items()
        }
        cells = tuple(self._free.pop() for _ in range(layout.num_pages))
        self.cells.memory[list(cells)] = pack_image(self.spec, layout, weights)
        return HeldImage(layout, self.cells.memory, cells, is_loose=False)

    def warm(
        self, image: HeldImage, errand: Errand, hidden_TI: Tensor, outs_TO: Sequence[Tensor]
    ) -> None:
        """What the warm path of a CPU adds, were the slab the pool."""
        shapes = [SiteShape(site.in_width, site.out_width) for site in SITES]
        memory = self.cells.memory
        cols = tile_cols(PAGE_ELEMENTS)
        table = LoraTable(shapes, tile_cols=cols, pool_elements=memory.numel())
        table.attach(0, place_tiles(image.layout, image.cells, PAGE_ELEMENTS))
        workspace = None
        if self.dtype != torch.float16:
            workspace = Workspace(dict(enumerate(shapes)), num_rows=128, dtype=self.dtype)
        work = LoraWork(table, [Segment(errand.start, errand.end, 0)])
        backend = choose_backend("cpu", workspace=workspace)
        add_lora(hidden_TI, memory, work, sites=errand.sites, outs_TO=outs_TO, backend=backend)


class ThreadHelper:
    """A helper's loop on a thread: a `Process` of the crew's."""

    pid = None

    def __init__(self, post: Post) -> None:
        self._end, self._ended = Bell(), Bell()
        self._thread = threading.Thread(target=self._serve, args=(post,), daemon=True)
        self._thread.start()

    @property
    def sentinel(self) -> int:
        return self._ended.fd

    def kill(self) -> None:
        self._end.ring()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _serve(self, post: Post) -> None:
        try:
            with torch.inference_mode():
                serve(post, self._end.fd)
        finally:
            self._ended.ring()


def make_helpers(slab: ColdSlab, *, num_helpers: int = 1, **options: object) -> Helpers:
    """Of threads, up."""
    changed = {"num_layers": NUM_LAYERS, "max_tokens": 64, "spawn": ThreadHelper, **options}
    helpers = Helpers(slab.cells, SITES, range(num_helpers), **changed)  # pyright: ignore[reportArgumentType]
    assert helpers.crew.await_up(WITHIN_S) == num_helpers
    return helpers


def rows_of(slab: ColdSlab, errand: Errand, *, num_rows: int = 50) -> tuple[Tensor, list[Tensor]]:
    """A step's rows at an errand's sites, and what the base says there."""
    hidden_TI = slab.random(num_rows, SITES[errand.sites[0]].in_width)
    return hidden_TI, [slab.random(num_rows, SITES[site].out_width) for site in errand.sites]


def assert_answered(helpers: Helpers, slab: ColdSlab, image: HeldImage, errand: Errand) -> None:
    """The errand's answer against the warm path's; all other rows bit for bit as they were."""
    hidden_TI, outs_TO = rows_of(slab, errand)
    expected = [out.clone() for out in outs_TO]
    slab.warm(image, errand, hidden_TI, expected)
    before = [out.clone() for out in outs_TO]
    ticket = helpers.send(errand, hidden_TI)
    assert ticket is not None
    assert ticket.add(outs_TO)
    for out, theirs, old in zip(outs_TO, expected, before, strict=True):
        assert_close(out, theirs)
        assert torch.equal(out[: errand.start], old[: errand.start])
        assert torch.equal(out[errand.end :], old[errand.end :])


def hold_up(helpers: Helpers, slot: int) -> Callable[[], None]:
    """Give one helper something that it cannot finish before the function returned is called."""
    crew = helpers.crew
    opening, member = crew.opening(slot), crew.able(slot)[0]
    assert opening is not None
    site = min(opening.factors)
    num_bytes = PAGE_ELEMENTS
    stretch = member.room.take(num_bytes)
    assert stretch is not None
    epoch = crew.next_epoch()
    entry = Entry(
        Kind.ERRAND,
        epoch,
        slot,
        opening=opening.number,
        input_at=stretch.start,
        answer_at=stretch.start + num_bytes // 2,
        num_rows=1,
        awaits_go=True,
        sites=(site,),
    )
    number = member.post(entry)

    def let_go() -> None:
        member.mailbox.tell_go(number, epoch)
        assert member.await_answer(number, epoch, WITHIN_S)
        member.settle(number, stretch)

    return let_go


def await_passed(helpers: Helpers) -> None:
    """Until every helper is past what was given up, or has ended."""
    for member in helpers.crew.members:
        while member.is_late and not member.is_over:
            member.look(WITHIN_S)


def leave_with_a_helper(conn: Connection) -> None:
    """Main of a process that starts a helper, tells its pid, and ends without stopping it as soon
    as it is told anything."""
    cells, core = ColdSlab().cells, max(os.sched_getaffinity(0))
    helpers = Helpers(cells, SITES, [core], num_layers=NUM_LAYERS, max_tokens=64)
    conn.send(helpers.crew.pids[0])
    conn.recv()
