"""What requests take alone: every length and rank that is sent has a figure to be a multiple of."""

from __future__ import annotations

import asyncio

import pytest

from lorry.bench.load import Reply
from lorry.bench.slo.bounds import MultipleBounds, all_bounds
from lorry.bench.slo.source import Source, take_workload
from lorry.bench.slo.unloaded import SoloFailed, length_bin, measure_unloaded, solo_cases
from lorry.bench.workload.records import BASE, Piece, WorkloadAdapter, WorkloadRequest
from lorry.tests.slo_builders import make_request, make_workload

ADAPTERS = (WorkloadAdapter("s", 8, 0.5), WorkloadAdapter("l", 64, 0.5))


def sized(adapter: str, num_tokens: int, *, num_new_tokens: int = 30) -> WorkloadRequest:
    return make_request(0.0, adapter, prompt=(Piece(0, num_tokens),), num_new_tokens=num_new_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "edge"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (1000, 1024)]
)
def test_bins_double(num_tokens: int, edge: int) -> None:
    assert length_bin(num_tokens) == edge


def test_cases_are_those_that_are_sent() -> None:
    """A case nobody sends costs seconds; one that is missing has no bound."""
    lens = [("s", 40), ("s", 50), ("s", 60), ("l", 62), (BASE, 10), ("s", 100)]
    found = solo_cases(make_workload([sized(*one) for one in lens], adapters=ADAPTERS))
    assert [(one.max_prompt_tokens, one.rank, one.num_prompt_tokens) for one in found] == [
        (32, 0, 10),
        (64, 8, 50),  # the median of the bin, whoever asked
        (64, 64, 50),
        (128, 8, 100),
    ]
    assert {one.num_new_tokens for one in found} == {16}
    short = make_workload([sized("s", 40, num_new_tokens=3)], adapters=ADAPTERS)
    assert solo_cases(short)[0].num_new_tokens == 3


def test_every_request_of_the_bench_gets_its_bounds() -> None:
    workload = take_workload(Source(num_requests=240))
    seen: list[WorkloadRequest] = []

    async def ask(request: WorkloadRequest) -> Reply:
        seen.append(request)
        return Reply((0,), ttft_s=0.001 * request.num_prompt_tokens, tpot_s=0.01)

    table = asyncio.run(measure_unloaded(ask, workload, num_runs=2, tell=lambda _: None))
    bounds = all_bounds(workload, MultipleBounds(table, ttft_x=10.0, tpot_x=5.0))
    assert {one.tpot_s for one in bounds} == {0.05}
    for request, bound in zip(workload.requests, bounds, strict=True):
        assert bound.ttft_s / (0.01 * request.num_prompt_tokens) >= 0.5 or (
            request.num_prompt_tokens < 32
        )
    prompts = [request.prompt for request in seen]
    assert len(set(prompts)) == len(prompts) == 3 * len(table.cells), "no prompt comes twice"


def test_first_of_a_case_does_not_count() -> None:
    """It brings the adapter along. Of the others the median, not the mean, stands for all."""
    ttfts_s = iter([9.0, 1.0, 3.0, 1.5])

    async def ask(request: WorkloadRequest) -> Reply:
        return Reply((0,), ttft_s=next(ttfts_s), tpot_s=0.1)

    workload = make_workload([sized("s", 40)], adapters=ADAPTERS)
    (cell,) = asyncio.run(measure_unloaded(ask, workload, num_runs=3, tell=lambda _: None)).cells
    assert (cell.ttft_s, cell.num_runs, cell.rank, cell.max_prompt_tokens) == (1.5, 3, 8, 64)


def test_failure_alone_on_the_server_ends_the_run() -> None:
    async def ask(request: WorkloadRequest) -> Reply:
        return Reply(error="INTERNAL: broken")

    workload = make_workload([sized("s", 40)], adapters=ADAPTERS)
    with pytest.raises(SoloFailed, match=r"alone .*rank=8.*INTERNAL: broken"):
        asyncio.run(measure_unloaded(ask, workload, num_runs=3, tell=lambda _: None))
