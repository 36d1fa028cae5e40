"""Cold steps with the helpers that serve, on threads of the test: what is asked, sent, computed
from cells and added, in one model."""

from __future__ import annotations

import torch

from lorry.server.execution.cold_start.crew import SharedCells
from lorry.server.execution.cold_start.handover import Errand, Ticket
from lorry.server.execution.cold_start.helpers import Helpers
from lorry.server.execution.cold_start.shared import make_memory, map_memory
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.starts import Way
from lorry.tests.cold_builders import ColdBench, ReferenceHandover, SteppedBoard, Wind
from lorry.tests.execution_builders import (
    LIMITS,
    Ask,
    make_bench,
    make_prompt,
    random_peft,
    serve,
    tiny_llama,
)
from lorry.tests.fakes import FakeClock
from lorry.tests.helper_builders import WITHIN_S, ThreadHelper

NUM_CELLS = 120
CLOSE = 1e-4
# Slots 1 and 2 are assisted, 3 streams.
RANKS = (5, 8, 24, 3)


class CountedHelpers(Helpers):
    """Counts the errands that were taken."""

    num_taken = 0

    def send(self, errand: Errand, hidden_TI: torch.Tensor) -> Ticket | None:
        ticket = super().send(errand, hidden_TI)
        self.num_taken += ticket is not None
        return ticket


def asks() -> list[Ask]:
    sampling = SamplingParams(logprobs=0, prompt_logprobs=0)
    return [
        Ask(make_prompt(6 + 4 * i, seed=i), slot=slot, chunk=5 + i, num_new=3, sampling=sampling)
        for i, slot in enumerate((-1, 0, 1, 1, 2, 3))
    ]


def test_helpers_and_device_compute_one_step() -> None:
    """Rows of several adapters in several chunks, their layers in the pool, in host memory or not
    read yet, computed by whoever may: the tokens of adapters in the pool."""
    model = tiny_llama(num_hidden_layers=3)
    fleet = [random_peft(model, rank=rank, seed=slot) for slot, rank in enumerate(RANKS)]
    warm, expected, ours = make_bench(model), asks(), asks()
    for slot, adapter in enumerate(fleet):
        warm.put_adapter(slot, adapter)
    serve(warm, expected)
    bench, board = make_bench(model), SteppedBoard()
    page_elements = bench.runner.pool_PE.shape[1]
    shared = make_memory("test-cold-step", NUM_CELLS * page_elements * torch.float32.itemsize)
    cells = map_memory(shared).view(torch.float32).view(NUM_CELLS, page_elements)
    helpers = CountedHelpers(
        SharedCells(shared.fd, cells.fill_(torch.nan)),
        bench.loaded.image_spec.sites,
        range(2),
        num_layers=3,
        max_tokens=LIMITS.max_step_tokens,
        board=board,
        patience_s=WITHIN_S,
        spawn=ThreadHelper,
    )
    try:
        assert helpers.crew.await_up(WITHIN_S) == 2
        bench.runner.use_cold(board=board, handover=helpers)
        cold = ColdBench(bench, board, ReferenceHandover(bench.loaded), FakeClock(), slab=cells)
        cold.bench.put_adapter(0, fleet[0])
        for slot, way in ((1, Way.ASSIST), (2, Way.ASSIST), (3, Way.STREAM)):
            cold.put_cold(slot, fleet[slot], way)
        board.on_look = Wind(board, 0.01, seed=1).blow
        cold.serve(ours)
        for slot in (1, 2, 3):
            cold.runner.detach(slot)
    finally:
        helpers.stop()
    assert helpers.num_taken > 20, "the helpers were hardly asked"
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.tokens == theirs.tokens
        for one, other in zip(mine.told, theirs.told, strict=True):
            assert abs(one.logprob - other.logprob) <= CLOSE
