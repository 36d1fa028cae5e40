"""Whole steps over the hand-over of a GPU, its kernels interpreted: with helpers that are threads,
and no layer in the pool."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lorry.adapters.host_tier import HeldImage
from lorry.server.execution.batch import StepRow
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.cold_start.crew import SharedCells
from lorry.server.execution.cold_start.device_handover import DeviceHelpers
from lorry.server.execution.cold_start.shared import make_memory, map_memory
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.starts import Way
from lorry.tests.cold_builders import with_ways
from lorry.tests.execution_builders import (
    Bench,
    make_bench,
    make_prompt,
    pack_peft,
    random_peft,
    tiny_llama,
)
from lorry.tests.helper_builders import WITHIN_S, ThreadHelper, hold_up
from lorry.tests.kernels_builders import INTERPRETED

pytestmark = INTERPRETED

NUM_LAYERS = 1
NUM_CELLS = 64
SLOTS = (-1, 0, 1, 2)  # of the rows; 0 is warm, 1 and 2 are on their way
COLD = {1: Way.ASSIST, 2: Way.ASSIST}
MANY_LOOKS, FEW_LOOKS = 1 << 30, 3
ABOUT = SamplingParams(logprobs=0)


@pytest.fixture(autouse=True)
def _quick_turns() -> Generator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


@dataclass
class DeviceBench:
    """Adapters 1 and 2 lie in host memory; their pages hold NaN."""

    bench: Bench
    helpers: DeviceHelpers


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama(num_hidden_layers=NUM_LAYERS)


@pytest.fixture
def cold(model: PreTrainedModel) -> Generator[DeviceBench]:
    bench = make_bench(model)
    pool_PE = bench.runner.pool_PE
    num_bytes = NUM_CELLS * pool_PE.shape[1] * pool_PE.element_size()
    shared = make_memory("test-slab", num_bytes)
    cells = map_memory(shared).view(pool_PE.dtype).view(NUM_CELLS, -1).fill_(torch.nan)
    board = LandedBoard()
    helpers = DeviceHelpers(
        SharedCells(shared.fd, cells),
        bench.loaded.image_spec.sites,
        range(1),
        num_layers=NUM_LAYERS,
        max_tokens=64,
        device=torch.device("cpu"),
        board=board,
        spawn=ThreadHelper,
    )
    helpers.max_looks = MANY_LOOKS
    assert helpers.crew.await_up(WITHIN_S) == 1
    bench.runner.use_cold(board=board, handover=helpers)
    bench.put_adapter(0, adapter_of(model, 0))
    end = 0
    for slot in COLD:
        layout, pages_PE = pack_peft(bench.loaded, adapter_of(model, slot))
        places = tuple(range(end, end + layout.num_pages))
        end += layout.num_pages
        cells[list(places)] = pages_PE
        board.begin(slot, slot)
        board.read(slot, slot, NUM_LAYERS)
        image = HeldImage(layout, cells, places, is_loose=False)
        bench.runner.attach_cold(slot, image, bench.take(layout.num_pages))
    yield DeviceBench(bench, helpers)
    helpers.stop()


def adapter_of(model: PreTrainedModel, slot: int) -> PeftModel:
    return random_peft(model, rank=3 + 6 * slot, seed=slot, targets=("q_proj", "down_proj"))


def rows_of(bench: Bench) -> list[StepRow]:
    """A prompt for each of the slots."""
    rows: list[StepRow] = []
    for row, slot in enumerate(SLOTS):
        prompt = make_prompt(5 + 2 * row, seed=row)
        pages = bench.take(2)
        rows.append(StepRow(row, prompt, len(prompt), 0, pages, slot, True, ABOUT, prompt))
    return rows


def warm_tokens(model: PreTrainedModel) -> dict[int, int]:
    bench = make_bench(model)
    for slot in (0, *COLD):
        bench.put_adapter(slot, adapter_of(model, slot))
    return bench.runner.run(rows_of(bench)).tokens


def test_a_device_takes_answers_or_loses_cold_rows_alone(
    cold: DeviceBench, model: PreTrainedModel
) -> None:
    """Every product of both cold slots comes from helpers, none from the pool. Where one does not
    answer, the device gives up once for the whole step: others' tokens are right, and the next
    step's all are, once the helper is back."""
    runner, expected = cold.bench.runner, warm_tokens(model)
    assert runner.run(with_ways(rows_of(cold.bench), COLD)).tokens == expected
    let_go = hold_up(cold.helpers, 1)
    cold.helpers.max_looks = FEW_LOOKS
    result = runner.run(with_ways(rows_of(cold.bench), COLD))
    assert result.lost == (2, 3)
    assert result.tokens == {row: expected[row] for row in (0, 1)}
    let_go()
    cold.helpers.max_looks = MANY_LOOKS
    while not cold.helpers.have_passed():
        pass
    result = runner.run(with_ways(rows_of(cold.bench), COLD))
    assert result.tokens == expected and not result.lost
