"""A load beside the steps of others: what is compared, and what is no comparison."""

from __future__ import annotations

import asyncio

import pytest

from lorry.bench.cost.step_logs import Span
from lorry.bench.scale.crossing import (
    MIN_STEPS,
    NotQuiet,
    TooFewSteps,
    Turn,
    ask_at_pace,
    decode_steps_s,
    due_by,
    loading_share,
    p95_of,
    refuse_loads,
)
from lorry.bench.scale.sizes import NUM_BYSTANDERS
from lorry.server.scheduling.step_work import NO_WORK
from lorry.server.step_meter import MeteredStep

EVERY_S = 2.0**-13  # waits are real ones
DECODE = NO_WORK._replace(steps=1, decode_rows=NUM_BYSTANDERS)


def test_only_steps_in_which_everyone_decodes_are_judged() -> None:
    """The prompt of a cold adapter is no cost of its load: its step is longer for its tokens."""
    steps = [MeteredStep(float(i), 0.01, 0.01, DECODE) for i in range(MIN_STEPS)]
    odd = [DECODE._replace(decode_rows=7), DECODE._replace(decode_rows=1)]
    long = [MeteredStep(5.0, 9.0, 0.01, work) for work in odd for _ in range(MIN_STEPS)]
    of_another_turn = [MeteredStep(200.0, 9.0, 0.01, DECODE)]
    found = decode_steps_s([*steps, *long, *of_another_turn], Span(0.0, 100.0))
    assert found == [0.01] * MIN_STEPS
    assert p95_of(found) == 0.01


def test_a_turn_of_few_steps_is_none() -> None:
    """The P95 of ten steps is their longest."""
    with pytest.raises(TooFewSteps, match=f"{MIN_STEPS - 1} steps"):
        p95_of([0.01] * (MIN_STEPS - 1))


def test_a_quiet_turn_with_a_load_is_refused() -> None:
    """Loads on both sides of a comparison cancel out, and the ratio is near 1 for nothing."""
    refuse_loads([0, 0])
    with pytest.raises(NotQuiet, match="quiet turn 1 had 3 loads, where 0 are allowed"):
        refuse_loads([0, 3])


def test_the_share_of_time_with_a_load() -> None:
    """Of ten seconds, 150 loads of 0.05 s are three quarters; of two turns, both."""
    turn = Turn(Span(10.0, 20.0), num_asks=150, num_loads=150)
    idle = Turn(Span(20.0, 30.0), num_asks=150, num_loads=0)
    assert loading_share([turn], 0.05) == pytest.approx(0.75)
    assert loading_share([turn, idle], 0.05) == pytest.approx(0.375)
    assert loading_share([turn], 1.0) == 1.0


def test_asks_fall_due_by_the_clock_alone() -> None:
    """A closed loop asks less of a slow server, and both rows would not ask as often."""
    assert [due_by(s, every_s=0.5) for s in (0.0, 0.49, 0.5, 0.99, 1.0)] == [1, 1, 2, 2, 3]


def test_all_that_fell_due_are_asked_and_awaited() -> None:
    """A clock that jumps, as a busy machine does, leaves none out; none is asked after the end."""
    instants = iter([0.0, 0.0, 0.2 * EVERY_S, 2.1 * EVERY_S, 4.5 * EVERY_S])
    asked: list[int] = []
    answered: list[int] = []

    async def play() -> int:
        over: asyncio.Future[list[None]] = asyncio.get_running_loop().create_future()

        async def ask() -> None:
            asked.append(len(asked))
            if len(asked) == 5:
                over.set_result([])
            await asyncio.sleep(0)
            answered.append(1)

        async with asyncio.TaskGroup() as group:
            return await ask_at_pace(
                ask, group, over, every_s=EVERY_S, now_s=lambda: next(instants)
            )

    assert asyncio.run(play()) == 5
    assert len(answered) == 5
