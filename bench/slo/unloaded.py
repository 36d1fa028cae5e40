"""What a request takes when it is alone: the figures that bounds are multiples of.

Owns which cases are asked (every length bin and rank that the workload has, at the bin's median
length, with an adapter of that rank) and how: one after the other, the first of a case thrown
away since it may load the adapter, the median of the others. Called before the cells of a run,
on an idle server; who answers is handed in.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..load import Reply
from ..workload.records import Piece, Workload, WorkloadRequest
from .asking import AskOne
from .bounds import UnloadedCell, UnloadedTable, rank_of, ranks_of

NUM_RUNS = 20  # of a case, that count
MAX_NEW_TOKENS = 16  # enough for a time between tokens; the prompt is what the cases differ in
FIRST_SEED = 1 << 61  # of the prompts asked alone; a workload's own are below 2^53
SMALLEST_BIN = 32  # tokens; below, a prompt takes as long as a step does anyway


class SoloFailed(Exception):
    """A request that had the server to itself failed: there is nothing to be a multiple of."""


@dataclass(frozen=True, slots=True)
class SoloCase:
    """One cell of the table, and the request that stands for it."""

    max_prompt_tokens: int  # of its length bin
    rank: int  # 0: the base
    adapter: str
    num_prompt_tokens: int
    num_new_tokens: int


def length_bin(num_prompt_tokens: int) -> int:
    """Upper edge of its bin, itself inside: the next power of two."""
    return max(SMALLEST_BIN, 1 << (num_prompt_tokens - 1).bit_length())


def solo_cases(workload: Workload) -> list[SoloCase]:
    """By bin and rank; of each rank the adapter that comes first."""
    ranks = ranks_of(workload)
    lens: dict[int, list[int]] = {}
    found: dict[tuple[int, int], str] = {}
    for request in workload.requests:
        edge = length_bin(request.num_prompt_tokens)
        lens.setdefault(edge, []).append(request.num_prompt_tokens)
        found.setdefault((edge, rank_of(request, ranks)), request.adapter)
    num_new_tokens = min(MAX_NEW_TOKENS, max(one.num_new_tokens for one in workload.requests))
    return [
        SoloCase(edge, rank, adapter, statistics.median_low(lens[edge]), num_new_tokens)
        for (edge, rank), adapter in sorted(found.items())
    ]


async def measure_unloaded(
    ask: AskOne, workload: Workload, *, num_runs: int = NUM_RUNS, tell: Callable[[str], None]
) -> UnloadedTable:
    """Raises:
    SoloFailed: a request failed.
    """
    cells: list[UnloadedCell] = []
    for idx, case in enumerate(solo_cases(workload)):
        first_seed = FIRST_SEED + 1000 * idx
        replies = [await _solo(ask, case, seed=first_seed + run) for run in range(num_runs + 1)]
        cells.append(_cell(case, replies[1:]))
    tell(f"unloaded: {len(cells)} lengths and ranks, medians of {num_runs} solo runs each")
    return UnloadedTable(tuple(cells))


def _cell(case: SoloCase, replies: Sequence[Reply]) -> UnloadedCell:
    return UnloadedCell(
        max_prompt_tokens=case.max_prompt_tokens,
        rank=case.rank,
        ttft_s=statistics.median(reply.ttft_s for reply in replies),
        tpot_s=statistics.median(reply.tpot_s for reply in replies),
        num_runs=len(replies),
    )


async def _solo(ask: AskOne, case: SoloCase, *, seed: int) -> Reply:
    prompt = (Piece(seed, case.num_prompt_tokens),)
    reply = await ask(WorkloadRequest(0.0, case.adapter, prompt, case.num_new_tokens))
    if reply.error:
        raise SoloFailed(f"alone on the server, a request of {case} failed: {reply.error}")
    return reply
