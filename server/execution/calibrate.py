"""Timed steps that nobody asked for: what a cost model knows before the first request.

Owns the design: decoding rows by contexts, prompts by where they begin, adapters of a low and a
high rank in few and in many slots; from small steps to large ones, again and again, until the time
is up. Rows and adapters lie in pages of their own as far as the pool goes, since what is read twice
comes out of a cache. Leaves the runner as `warm_up` did: nothing attached, every page zero. Does
not know what is learnt from the times (scheduling/cost_fit.py). Called once, by calibration.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from ...adapters.image import ImageLayout
from ..clock import Clock
from ..scheduling.records import BASE_ID
from ..scheduling.sampling import SamplingParams
from ..scheduling.step_work import TimedStep, measure_work
from .batch import StepCapacity, StepRow
from .runner import Runner
from .warm_up import warm_up_layout

DESIGN = 2  # of the steps below; changes with them
RANKS = (8, 64)  # of the adapters, or the largest allowed
ROW_SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the rows that may run, at least one
CONTEXTS = (16, 256, 1024)  # tokens before the one that is computed
PROMPTS = (16, 64, 256, 1024)
STARTS = (0, 512)  # of a prompt's chunk
SLOTS = (1, 4, 16)  # of one rank
ADAPTER_SHARE = 0.5  # of the pool for adapters
STRIDE = 4  # steps are taken from small to large so many times in a round
NUM_ROUNDS = 2  # of all steps; each runs twice in a round, and the second time counts


class Part(NamedTuple):
    """Rows alike of a designed step."""

    num_rows: int
    num_tokens: int  # of each
    start: int  # tokens before them
    rank: int = 0  # of their adapters; 0: the base
    num_slots: int = 0  # the rows' adapters, in turn


Step = tuple[Part, ...]


def design(limits: StepCapacity, *, num_pool_tokens: int) -> list[Step]:
    """All of them fit the limits, and a pool that holds so many tokens; small ones first."""
    longest = min(limits.max_model_len, num_pool_tokens)
    most_rows = min(limits.max_running, limits.max_step_tokens)
    ranks = sorted({min(rank, limits.max_rank) for rank in RANKS})
    decodes: list[Part] = []
    for rows in sorted({max(1, int(share * most_rows)) for share in ROW_SHARES}):
        room = min(longest, num_pool_tokens // rows) - 1
        decodes += [Part(rows, 1, min(context, room)) for context in CONTEXTS]
    prompts = [
        Part(1, tokens, min(start, longest - tokens)) for tokens in PROMPTS for start in STARTS
    ]
    prompts += [Part(4, tokens // 4, 0) for tokens in PROMPTS]
    steps: list[Step] = [(part,) for part in (*decodes, *prompts)]
    for rank in ranks:
        short = (part for part in decodes if part.start <= CONTEXTS[0])
        steps += [
            (part._replace(rank=rank, num_slots=num),)
            for part, num in product(short, SLOTS)
            if num <= part.num_rows
        ]
        steps += [(part._replace(rank=rank, num_slots=1),) for part in prompts if not part.start]
    steps += [
        (part, Part(1, tokens, 0, ranks[0], 1)) for part, tokens in product(decodes, PROMPTS[1:3])
    ]
    fitting = {step for step in steps if _fits(step, limits, num_pool_tokens)}
    return sorted(fitting, key=lambda step: (_num_tokens(step), step))


def _num_tokens(step: Step) -> int:
    return sum(part.num_rows * part.num_tokens for part in step)


def _fits(step: Step, limits: StepCapacity, num_pool_tokens: int) -> bool:
    num_rows = sum(part.num_rows for part in step)
    held = sum(part.num_rows * (part.start + part.num_tokens) for part in step)
    return (
        num_rows <= limits.max_running
        and _num_tokens(step) <= limits.max_step_tokens
        and all(part.start + part.num_tokens <= limits.max_model_len for part in step)
        and all(part.start >= 0 and part.num_tokens > 0 for part in step)
        and held <= num_pool_tokens
    )


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The adapters that are attached."""

    slots: dict[int, list[int]]  # by rank
    num_bytes: dict[int, int]  # of one of a rank; 0: the base's
    num_pages: int  # all of theirs together, at the end of the pool


def time_steps(runner: Runner, clock: Clock, *, budget_s: float) -> list[TimedStep]:
    """Stops before the first step once the budget is spent: the last one may be beyond it."""
    info, end_s = runner.info(), clock.now_s() + budget_s
    fleet = _attach(runner)
    num_free = info.num_pages - fleet.num_pages
    timed: list[TimedStep] = []
    try:
        steps = design(runner.limits, num_pool_tokens=num_free * info.tokens_per_page)
        steps = [step for step in steps if all(part.rank in fleet.num_bytes for part in step)]
        # All sizes are met in the first quarter of a round, should the time not do for more.
        steps = [step for first in range(STRIDE) for step in steps[first::STRIDE]]
        for step in steps * NUM_ROUNDS:
            if clock.now_s() >= end_s:
                break
            timed.append(_time(step, runner, clock, fleet))
    finally:
        for slots in fleet.slots.values():
            for slot in slots:
                runner.detach(slot)
        runner.clear()
    return timed


def _attach(runner: Runner) -> _Fleet:
    """As many of each rank as a share of the pool holds; of no rank there may be none."""
    info = runner.info()
    ranks = sorted({min(rank, runner.limits.max_rank) for rank in RANKS})
    fleet = _Fleet({}, {0: 0}, 0)
    next_slot, end = 0, info.num_pages
    element_bytes = runner.pool_PE.element_size()
    for place, rank in enumerate(ranks, 1):
        layout = warm_up_layout(info.image_spec, rank)
        lowest = info.num_pages - int(info.num_pages * ADAPTER_SHARE * place / len(ranks))
        slots: list[int] = []
        while len(slots) < max(SLOTS) and end - layout.num_pages >= lowest:
            end -= layout.num_pages
            _put(runner, next_slot, layout, end)
            slots.append(next_slot)
            next_slot += 1
        if slots:
            fleet.slots[rank] = slots
            fleet.num_bytes[rank] = layout.used_elements * element_bytes
    return _Fleet(fleet.slots, fleet.num_bytes, info.num_pages - end)


def _put(runner: Runner, slot: int, layout: ImageLayout, first: int) -> None:
    runner.attach(slot, layout, range(first, first + layout.num_pages))


def _time(step: Step, runner: Runner, clock: Clock, fleet: _Fleet) -> TimedStep:
    rows = _rows(step, runner, fleet)
    runner.run(rows)
    began_s = clock.now_s()
    runner.run(rows)
    seconds = clock.now_s() - began_s
    bytes_of = {slot: fleet.num_bytes[rank] for rank, of in fleet.slots.items() for slot in of}
    work = measure_work(
        np.array([row.start for row in rows], np.int64),
        np.array([row.num_tokens for row in rows], np.int64),
        np.array([row.adapter_slot for row in rows], np.int64),
        np.array([bytes_of.get(row.adapter_slot, 0) for row in rows], np.int64),
    )
    return TimedStep(work, seconds)


def _rows(step: Step, runner: Runner, fleet: _Fleet) -> list[StepRow]:
    """By slot, the base's first; each in pages of its own as far as there are some."""
    info = runner.info()
    num_free = info.num_pages - fleet.num_pages
    rows: list[StepRow] = []
    next_page = 0
    for part in step:
        slots = fleet.slots[part.rank][: part.num_slots] if part.rank else [BASE_ID]
        num_pages = -(-(part.start + part.num_tokens) // info.tokens_per_page)
        for number in range(part.num_rows):
            pages = [(next_page + i) % num_free for i in range(num_pages)]
            next_page += num_pages
            rows.append(_row(len(rows), part, pages, slots[number * len(slots) // part.num_rows]))
    return sorted(rows, key=lambda row: row.adapter_slot)


def _row(row: int, part: Part, pages: Sequence[int], slot: int) -> StepRow:
    return StepRow(
        row=row,
        token_ids=[0] * part.num_tokens,
        num_tokens=part.num_tokens,
        start=part.start,
        pages=pages,
        adapter_slot=slot,
        sample=True,
        sampling=SamplingParams(),
    )
