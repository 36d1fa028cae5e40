"""For tests of cold starts: adapters that land layer by layer when a test says so, on a board that
moves whenever a step looks at it, and helpers that compute in the same thread.

Nothing waits: a board that is asked to wait is told by the test what happens meanwhile. Whatever
has not been read or has not landed holds NaN, so that a look too early shows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lorry.adapters.host_tier import HeldImage
from lorry.kernels.lora.reference import gather_factor
from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.cold_start.handover import Errand
from lorry.server.execution.model import LoadedModel
from lorry.server.execution.placing import place_tiles
from lorry.server.execution.runner import Runner
from lorry.server.scheduling.starts import Way
from lorry.tests.execution_builders import Ask, Bench, make_bench, pack_peft, serve
from lorry.tests.fakes import FakeClock

SPARE_CELLS = 3  # of host memory, that no image lies in


@dataclass
class Cargo:
    """One adapter on its way, moved by hand."""

    slot: int
    image: HeldImage  # NaN where it has not been read
    pages: list[int]
    on_disk: Tensor  # [pages, E], the image as it is
    pool: Tensor  # [P, E]
    board: LandedBoard
    load_id: int

    @property
    def num_layers(self) -> int:
        return len(self.image.layout.landed_pages)

    def read(self, num_layers: int) -> None:
        """So many layers are in host memory."""
        end = self._end(num_layers)
        self.image.memory[list(self.image.cells[:end])] = self.on_disk[:end]
        self.board.read(self.slot, self.load_id, num_layers)

    def land(self, num_layers: int) -> None:
        """So many layers are in the pool."""
        self.read(num_layers)
        end = self._end(num_layers)
        self.pool[self.pages[:end]] = self.on_disk[:end]
        self.board.land(self.slot, self.load_id, num_layers)

    def _end(self, num_layers: int) -> int:
        return self.image.layout.landed_pages[num_layers - 1] if num_layers else 0


class SteppedBoard(LandedBoard):
    """A board whose waits are over at once: `on_wait` may move the cargo meanwhile, by default it
    brings what is waited for. `on_look` is called whenever a step looks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cargo: dict[int, Cargo] = {}
        self.on_look: Callable[[], object] = lambda: None
        self.on_wait: Callable[[Cargo, int, bool, float], object] = self._bring
        self.num_looks = 0

    def has_landed(self, slot: int, layer: int) -> bool:
        self._look()
        return super().has_landed(slot, layer)

    def await_landed(self, slot: int, layer: int, timeout_s: float) -> bool:
        self._look()
        if not super().await_landed(slot, layer, 0.0):
            self.on_wait(self.cargo[slot], layer, True, timeout_s)
        return super().await_landed(slot, layer, 0.0)

    def await_either(self, slot: int, layer: int, timeout_s: float) -> bool:
        self._look()
        if not super().await_either(slot, layer, 0.0):
            self.on_wait(self.cargo[slot], layer, False, timeout_s)
        return super().await_either(slot, layer, 0.0)

    def _look(self) -> None:
        self.num_looks += 1
        self.on_look()

    @staticmethod
    def _bring(cargo: Cargo, layer: int, to_pool: bool, timeout_s: float) -> None:
        del timeout_s
        (cargo.land if to_pool else cargo.read)(layer + 1)


class Wind:
    """Moves all cargo of a board at random: at each look, each with a chance of `pace`."""

    def __init__(self, board: SteppedBoard, pace: float, *, seed: int) -> None:
        self._board, self._pace, self._rng = board, pace, random.Random(seed)
        self._read = Counter[int]()
        self._landed = Counter[int]()

    def blow(self) -> None:
        for slot, cargo in self._board.cargo.items():
            if self._rng.random() >= self._pace:
                continue
            if self._rng.random() < 0.6:
                self._read[slot] = min(self._read[slot] + 1, cargo.num_layers)
                cargo.read(self._read[slot])
            else:
                self._landed[slot] = min(self._landed[slot] + 1, cargo.num_layers)
                cargo.land(self._landed[slot])


class ReferenceHandover:
    """A hand-over whose helpers compute at once, by the definition, from host memory."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._sites = loaded.image_spec.sites
        self.images: dict[int, HeldImage] = {}  # by slot: what is open
        self.sent: list[Errand] = []
        self.refuses = False  # no helper is up
        self.fails: Callable[[Errand], bool] = lambda errand: False  # its answer does not come
        self.late: set[int] = set()  # slots that `lost` names, as a GPU does after the step

    def open(self, slot: int, image: HeldImage) -> None:
        assert slot not in self.images, f"slot {slot} is open already"
        self.images[slot] = image

    def close(self, slot: int) -> None:
        del self.images[slot]

    def send(self, errand: Errand, hidden_TI: Tensor) -> _Answer | None:
        if self.refuses or errand.slot not in self.images:
            return None
        self.sent.append(errand)
        if self.fails(errand):
            return _Answer(errand, None)
        return _Answer(errand, self._answers(errand, hidden_TI[errand.start : errand.end]))

    def lost(self) -> frozenset[int]:
        late, self.late = frozenset(self.late), set[int]()
        return late

    def stop(self) -> None:
        """Nobody to end."""

    def _answers(self, errand: Errand, rows_TI: Tensor) -> list[Tensor]:
        image = self.images[errand.slot]
        memory, cols = image.memory, image.layout.tile_cols
        factors = place_tiles(image.layout, image.cells, memory.shape[1])
        answers: list[Tensor] = []
        for site in errand.sites:
            tiles, shape = factors[site], self._sites[site]
            a_RI, b_RO = (
                gather_factor(memory, offsets, rank=tiles.rank, width=width, tile_cols=cols)
                for offsets, width in (
                    (tiles.a_offsets, shape.in_width),
                    (tiles.b_offsets, shape.out_width),
                )
            )
            answers.append(tiles.scale * (rows_TI.float() @ a_RI.T @ b_RO))
        return answers


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    errand: Errand
    answers: list[Tensor] | None

    def add(self, outs_TO: Sequence[Tensor]) -> bool:
        if self.answers is None:
            return False
        for out_TO, answer in zip(outs_TO, self.answers, strict=True):
            rows = out_TO[self.errand.start : self.errand.end]
            rows.copy_(rows.float() + answer)
        return True


@dataclass
class ColdBench:
    """A runner with cold rooms; adapters of `put_cold` are on their way until `arrive`."""

    bench: Bench
    board: SteppedBoard
    handover: ReferenceHandover
    clock: FakeClock
    ways: dict[int, Way] = field(default_factory=dict)  # by slot
    # Cells that processes may share, one image behind the other; None: each in memory of its own.
    slab: Tensor | None = None
    num_taken: int = 0  # of the slab's cells

    @property
    def runner(self) -> Runner:
        return self.bench.runner

    def put_cold(
        self, slot: int, peft_model: PeftModel, way: Way = Way.STREAM, *, is_loose: bool = False
    ) -> Cargo:
        """Nothing of it has been read."""
        layout, pages_PE = pack_peft(self.bench.loaded, peft_model)
        num_cells, first = layout.num_pages + SPARE_CELLS, self.num_taken
        memory = self.slab
        if memory is None:
            first = 0
            memory = torch.full((num_cells, pages_PE.shape[1]), torch.nan, dtype=pages_PE.dtype)
        self.num_taken = first + num_cells
        assert self.num_taken <= len(memory), "the test's slab is too small"
        generator = torch.Generator().manual_seed(slot)
        cells = first + torch.randperm(num_cells, generator=generator)[: layout.num_pages]
        image = HeldImage(layout, memory, tuple(cells.tolist()), is_loose=is_loose)
        pages = self.bench.take(layout.num_pages)
        cargo = Cargo(slot, image, pages, pages_PE, self.runner.pool_PE, self.board, 7 + slot)
        self.board.begin(slot, cargo.load_id)
        self.board.cargo[slot], self.ways[slot] = cargo, way
        self.runner.attach_cold(slot, image, pages)
        return cargo

    def arrive(self, slot: int) -> None:
        """The whole image is in the pool: from now on the slot is warm."""
        cargo = self.board.cargo.pop(slot)
        cargo.land(cargo.num_layers)
        self.runner.attach(slot, cargo.image.layout, cargo.pages)
        del self.ways[slot]

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        """Each row goes the way of its slot."""
        return self.runner.run(with_ways(rows, self.ways))

    def serve(self, asks: Sequence[Ask]) -> list[list[int]]:
        """As `execution_builders.serve`."""
        return serve(replace(self.bench, runner=cast(Runner, self)), asks)


def with_ways(rows: Sequence[StepRow], ways: Mapping[int, Way]) -> list[StepRow]:
    return [replace(row, way=ways.get(row.adapter_slot, Way.WARM)) for row in rows]


def make_cold_bench(
    model: PreTrainedModel, *, patience_s: float = 10.0, helps: bool = True, **options: Any
) -> ColdBench:
    """`options`: of `make_bench`."""
    bench = make_bench(model, **options)
    cold = ColdBench(bench, SteppedBoard(), ReferenceHandover(bench.loaded), FakeClock())
    bench.runner.use_cold(
        board=cold.board,
        handover=cold.handover if helps else None,
        clock=cold.clock,
        patience_s=patience_s,
    )
    return cold
