"""One adapter's fault is one adapter's alone: the engine and the others go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lorry.adapters.errors import AdapterRefused, AdapterTooLarge
from lorry.adapters.image import ImageLayout
from lorry.server.errors import InternalError
from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.seam import Finish
from lorry.tests.engine_bench import make_bench, submit
from lorry.tests.fakes import FakeRunner, make_card


class PickyRunner(FakeRunner):
    """Takes no image of three pages."""

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        if len(pages) == 3:
            raise ValueError("three pages")
        super().attach(slot, layout, pages)


class LoudRunner(FakeRunner):
    """Of an adapter's row it has no finite logits once five tokens are known."""

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        found = super().run(rows)
        tokens = found.tokens
        loud = tuple(
            row.row
            for row in rows
            if row.sample and row.adapter_slot >= 0 and row.start + row.num_tokens == 5
        )
        told = tuple(one for one in found.told if one.row not in loud)
        return StepResult({row: tokens[row] for row in tokens if row not in loud}, loud, told=told)


def test_an_adapter_that_cannot_be_attached_fails_alone():
    """One image the kernels cannot take ending the engine for everyone."""
    bench = make_bench(runner_kind=PickyRunner)
    bench.tell(submit(1, make_card("odd", num_pages=3)), submit(2, make_card("good")))
    bench.run_dry()
    assert isinstance(bench.ended[1], InternalError)
    assert isinstance(bench.ended[2], Finish)
    bench.tell(submit(3, make_card("odd", num_pages=3)))
    bench.run_dry()
    assert isinstance(bench.ended[3], InternalError)
    bench.pool.audit()
    assert bench.num_available + 2 == bench.pool.num_pages  # the good one stays


def test_a_rank_beyond_the_buffers_is_refused_at_the_door():
    """An adapter stored under a larger --max-rank that the kernels have no room for."""
    bench = make_bench()
    bench.tell(submit(1, dataclasses.replace(make_card(), max_rank=300)))
    bench.run_dry()
    error = bench.ended[1]
    assert isinstance(error, AdapterTooLarge) and (error.value, error.limit) == (300, 256)


def test_logits_that_are_not_finite_end_their_request_alone():
    """Token 0 said instead of an error, or an engine that dies of one adapter."""
    bench = make_bench(runner_kind=LoudRunner)
    bench.tell(submit(1, make_card("loud"), max_new_tokens=8), submit(2, prompt_ids=(5,)))
    bench.run_dry()
    assert isinstance(bench.ended[1], AdapterRefused) and "loud" in str(bench.ended[1])
    assert len(bench.tokens[1]) == 2
    assert isinstance(bench.ended[2], Finish)
    assert bench.num_available + 2 == bench.pool.num_pages
