"""How fast a request must be: bounds on TTFT and TPOT, and the rules that give each its own.

A rule is fixed, or multiples of what the same request would take on an idle server: bounds that
carry over from one machine to another (Toppings, Chameleon). A request's own bounds always win.
Pure; the table of unloaded figures is measured elsewhere. Called by figures.py and by whoever
sends a workload with its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..workload.records import BASE, Workload, WorkloadRequest


@dataclass(frozen=True, slots=True)
class Bounds:
    ttft_s: float  # from the instant a request was due to its first token; inf: none
    tpot_s: float  # between tokens on average, after the first; inf: none


@dataclass(frozen=True, slots=True)
class FixedBounds:
    """The same for all."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class UnloadedCell:
    """An idle, warm server: medians over solo runs of one length and rank."""

    max_prompt_tokens: int  # upper edge of the bin, itself inside
    rank: int  # of the adapter; 0: the base
    ttft_s: float
    tpot_s: float
    num_runs: int  # that the medians are of


@dataclass(frozen=True, slots=True)
class UnloadedTable:
    cells: tuple[UnloadedCell, ...]

    def cell(self, num_prompt_tokens: int, rank: int) -> UnloadedCell:
        """Of the narrowest bin that holds the prompt.

        Raises:
            ValueError: nothing was measured for this rank or a prompt as long.
        """
        of_rank = [cell for cell in self.cells if cell.rank == rank]
        if not of_rank:
            known = sorted({cell.rank for cell in self.cells})
            raise ValueError(f"rank is {rank}; unloaded figures exist for {known}")
        wide = [cell for cell in of_rank if cell.max_prompt_tokens >= num_prompt_tokens]
        if not wide:
            most = max(cell.max_prompt_tokens for cell in of_rank)
            raise ValueError(
                f"the prompt has {num_prompt_tokens} tokens; "
                f"unloaded figures of rank {rank} end at {most}"
            )
        return min(wide, key=lambda cell: cell.max_prompt_tokens)


@dataclass(frozen=True, slots=True)
class MultipleBounds:
    """So many times what the request takes alone."""

    table: UnloadedTable
    ttft_x: float
    tpot_x: float


BoundsRule = FixedBounds | MultipleBounds


def bounds_of(request: WorkloadRequest, rank: int, rule: BoundsRule) -> Bounds:
    if request.ttft_s and request.tpot_s:
        return Bounds(request.ttft_s, request.tpot_s)
    match rule:
        case FixedBounds():
            ttft_s, tpot_s = rule.ttft_s, rule.tpot_s
        case MultipleBounds():
            alone = rule.table.cell(request.num_prompt_tokens, rank)
            ttft_s, tpot_s = rule.ttft_x * alone.ttft_s, rule.tpot_x * alone.tpot_s
    return Bounds(request.ttft_s or ttft_s, request.tpot_s or tpot_s)


def all_bounds(workload: Workload, rule: BoundsRule) -> tuple[Bounds, ...]:
    """In the order of the requests."""
    ranks = ranks_of(workload)
    return tuple(bounds_of(request, rank_of(request, ranks), rule) for request in workload.requests)


def with_bounds(workload: Workload, rule: BoundsRule) -> Workload:
    """The same workload whose every request carries its bounds: what is sent is what is judged."""
    pairs = zip(workload.requests, all_bounds(workload, rule), strict=True)
    return replace(
        workload,
        requests=tuple(
            replace(request, ttft_s=bounds.ttft_s, tpot_s=bounds.tpot_s)
            for request, bounds in pairs
        ),
    )


def ranks_of(workload: Workload) -> dict[str, int]:
    """Adapter -> rank; the base has 0."""
    return {BASE: 0, **{adapter.name: adapter.rank for adapter in workload.adapters}}


def rank_of(request: WorkloadRequest, ranks: dict[str, int]) -> int:
    if request.adapter not in ranks:
        raise ValueError(f"a request asks for {request.adapter!r}, no adapter of its workload")
    return ranks[request.adapter]
