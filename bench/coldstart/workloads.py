"""What is sent: the loads of the three parts, drawn with fixed seeds; and whose requests are cold.

Pure. Every cold request of a cell names an adapter of its own. Lengths of burst and sustained load
are LMSYS-Chat-1M's as Toppings has them, answers a fifth as long, so that a cell lasts seconds.
Instants of the part `single` are multiples of the measured prefill of 256 tokens, so that one cold
start is over before the next. Knows no server; used by study.py and world.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..slo.rates import at_rate
from ..workload.fit import Scale
from ..workload.lengths import LogNormal
from ..workload.make import make_workload
from ..workload.popularity import Distinct
from ..workload.ranks import fixed
from ..workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest
from ..workload.settings import WorkloadSettings
from .sizes import (
    BURST,
    BYSTANDER_PROMPT,
    BYSTANDER_RANK,
    MAX_MODEL_LEN,
    NUM_BYSTANDER_ADAPTERS,
    NUM_BYSTANDERS,
    NUM_COLD_TOKENS,
    PREFILL_TOKENS,
    RANK,
    SINGLE,
    Point,
    Row,
    Sizes,
)

SEED = 7
ANSWER_FACTOR = 0.2
BYSTANDER_SEED, COLD_SEED = 1 << 54, 1 << 55  # of prompts; a drawn workload's are below 2^53
BURST_LEAD = 12.0  # prefills of 256 tokens, from the bystanders' start to the burst
SINGLE_LEAD = 3.0  # the same, to a single cold request
EPISODE = 10.0  # the same, from one cold start to the next, beside what its prompt and load take
# Of bystanders, who must be in the pool before any cell.
WARM = tuple(f"warm-{idx}" for idx in range(NUM_BYSTANDER_ADAPTERS))


@dataclass(frozen=True, slots=True)
class Fleet:
    """All adapters of a run by name, and what they are for."""

    adapters: tuple[WorkloadAdapter, ...]
    points: Mapping[Point, str]  # -> its adapter
    sustained: Workload  # at 1 request/s

    @property
    def ranks(self) -> dict[str, int]:
        return {one.name: one.rank for one in self.adapters}


def draw_fleet(sizes: Sizes) -> Fleet:
    """Names and requests of a run; `points` have adapters that no other part uses."""
    sustained = make_workload(
        WorkloadSettings(
            name="s3",
            seed=SEED,
            num_requests=max(sizes.num_s3, sizes.num_burst),
            rate_per_s=1.0,
            num_adapters=max(sizes.num_s3, sizes.num_burst),
            popularity=Distinct(),
            lengths=LogNormal(),
            ranks=fixed(RANK),
            scale=Scale(answer_factor=ANSWER_FACTOR, max_model_len=MAX_MODEL_LEN),
        )
    )
    points = {point: f"r{point.rank}-t{point.num_prompt_tokens}" for point in sizes.points}
    adapters = (
        *sustained.adapters,
        *(WorkloadAdapter(name, point.rank, 0.0) for point, name in points.items()),
        *(WorkloadAdapter(name, BYSTANDER_RANK, 0.0) for name in WARM),
    )
    return Fleet(adapters, points, sustained)


def make_load(
    row: Row, sizes: Sizes, fleet: Fleet, *, rate_per_s: float, prefill_s: float
) -> Workload:
    """`rate_per_s`: of the sustained load; `prefill_s`: of 256 tokens alone, the unit of time."""
    if row.part == BURST:
        requests = tuple(_burst(sizes, fleet, prefill_s))
    elif row.part == SINGLE:
        requests = tuple(_episodes(sizes, fleet, prefill_s, row.ratio))
    else:
        drawn = replace(fleet.sustained, requests=fleet.sustained.requests[: sizes.num_s3])
        requests = at_rate(drawn, rate_per_s).requests
    asked = {one.adapter for one in requests}
    adapters = tuple(one for one in fleet.adapters if one.name in asked)
    return Workload(row.name, SEED, "", adapters, requests)


def is_bystander(request: WorkloadRequest) -> bool:
    return request.adapter in WARM


def cold_names(workload: Workload) -> tuple[str, ...]:
    """Adapters that must not be in a pool when the cell begins."""
    return tuple(one.name for one in workload.adapters if one.name not in WARM)


def _burst(sizes: Sizes, fleet: Fleet, prefill_s: float) -> Iterator[WorkloadRequest]:
    """Cold ones with the lengths of the sustained load, all due at one instant."""
    yield from _bystanders(0.0, sizes.num_burst_tokens, first=0)
    for one in fleet.sustained.requests[: sizes.num_burst]:
        yield replace(one, at_s=BURST_LEAD * prefill_s)


def _episodes(
    sizes: Sizes, fleet: Fleet, prefill_s: float, ratio: float
) -> Iterator[WorkloadRequest]:
    """One cold request after the other, each in the middle of answers of eight bystanders."""
    at_s = 0.0
    for idx, point in enumerate(sizes.points):
        yield from _bystanders(at_s, sizes.num_bystander_tokens, first=idx * NUM_BYSTANDERS)
        prompt = (Piece(COLD_SEED + idx, point.num_prompt_tokens),)
        due_s = at_s + SINGLE_LEAD * prefill_s
        yield WorkloadRequest(due_s, fleet.points[point], prompt, NUM_COLD_TOKENS)
        own = 2 * point.num_prompt_tokens / PREFILL_TOKENS + 2 * ratio * point.rank / RANK
        at_s += (EPISODE + own) * prefill_s


def _bystanders(at_s: float, num_new_tokens: int, *, first: int) -> Iterator[WorkloadRequest]:
    for idx in range(NUM_BYSTANDERS):
        prompt = (Piece(BYSTANDER_SEED + first + idx, BYSTANDER_PROMPT),)
        yield WorkloadRequest(at_s, WARM[idx % len(WARM)], prompt, num_new_tokens)
