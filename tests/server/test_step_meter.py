"""The engine's stopwatch, in both loops, on a clock that a test moves; and loads' on the link."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.memory.link_records import LinkEvent, Loaded, LoadFailed, LoadOrder
from lorry.server.metered_link import MeteredLink
from lorry.server.scheduling.commit import awaits
from lorry.server.scheduling.cost_fit import CostFit
from lorry.server.scheduling.records import PlannedRun, StepPlan
from lorry.server.scheduling.step_work import NO_WORK
from lorry.server.step_meter import MeteredStep, StepMeter
from lorry.tests.engine_bench import Bench, make_bench, submit
from lorry.tests.fakes import FakeClock, FakeLink, FakeRunner, make_card, make_layout

STEP_S, BETWEEN_S = 0.5, 0.01  # of a step on the device; of the time between two turns of the loop


class SlowRunner(FakeRunner):
    """Computes in `STEP_S` of a clock."""

    clock: FakeClock

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        self.clock.advance(STEP_S)
        return super().run(rows)


def metered(*, overlaps: bool) -> tuple[Bench, list[MeteredStep]]:
    steps = list[MeteredStep]()
    meter = StepMeter(CostFit(), log=steps.append)
    bench = make_bench(overlaps=overlaps, runner_kind=SlowRunner, meter=meter)
    assert isinstance(bench.runner, SlowRunner)
    bench.runner.clock = bench.clock
    return bench, steps


def test_a_step_of_the_plain_loop_lasts_its_turn() -> None:
    """The time a client thinks, or another process's, counted as the step's."""
    bench, steps = metered(overlaps=False)
    bench.tell(submit(1))
    bench.run_dry()
    bench.clock.advance(60.0)
    bench.tell(submit(2, make_card(weight_bytes=640)))
    bench.run_dry()
    assert [step.seconds for step in steps] == pytest.approx([STEP_S] * 8)
    assert steps[0].ended_s == pytest.approx(100.0 + STEP_S)
    prompt = NO_WORK._replace(steps=1, prompt_chunks=1, prompt_tokens=3, prompt_pairs=6)
    decode = NO_WORK._replace(steps=1, decode_rows=1, decode_context=6)
    of_adapter = {"adapters": 1, "adapter_bytes": 640}
    assert steps[0].work == prompt
    assert steps[3].work == decode
    assert steps[4].work == prompt._replace(**of_adapter, lora_token_bytes=3 * 640)
    assert steps[7].work == decode._replace(**of_adapter, lora_token_bytes=640)
    assert [step.lora_tokens for step in steps] == [0, 0, 0, 0, 3, 1, 1, 1]
    assert [step.max_adapter_bytes for step in steps] == [0] * 4 + [640] * 4


def test_steps_of_the_overlapped_loop_last_from_landing_to_landing() -> None:
    """Two steps aloft at once would each count the other's time."""
    bench, steps = metered(overlaps=True)
    bench.tell(submit(1))
    bench.run_dry()
    bench.clock.advance(60.0)
    bench.tell(submit(2))
    bench.run_dry()
    # Here the device computes when it is waited for, one turn later than a step is launched.
    assert [step.seconds for step in steps] == pytest.approx([STEP_S + BETWEEN_S] * 8)
    assert [step.work.prompt_tokens for step in steps] == [3, 0, 0, 0] * 2


def test_both_loops_do_the_same_work() -> None:
    """Rows that left while their step was aloft are in it all the same."""
    works = list[list[object]]()
    for overlaps in (False, True):
        bench, steps = metered(overlaps=overlaps)
        bench.tell(submit(1), submit(2, make_card(weight_bytes=9), max_new_tokens=2), submit(3))
        bench.run_dry()
        works.append([step.work for step in steps])
    assert works[0] == works[1] and len(works[0]) == 4


def test_an_engine_without_a_fit_is_not_metered() -> None:
    """A simulator would pay for what it makes up itself."""
    bench = make_bench()
    bench.tell(submit(1))
    bench.run_dry()
    assert bench.engine.stats(pages=False).cost.source == "none"
    assert bench.engine.stats(pages=False).cost.num_steps == 0


class LoadedAt(FakeLink):
    """Tells seconds, as a link with a clock does; even ones were read from disk."""

    def poll(self) -> list[LinkEvent]:
        return [
            Loaded(
                event.load_id,
                make_layout(),
                seconds=9.0,
                wire_s=0.25 * event.load_id,
                disk_s=0.0 if event.load_id % 2 else 2.0 * event.load_id,
            )
            if isinstance(event, Loaded)
            else event
            for event in super().poll()
        ]


def order(load_id: int, num_bytes: int) -> LoadOrder:
    return LoadOrder(load_id, 0, 0, make_card(weight_bytes=num_bytes), (0, 1))


def test_loads_teach_the_model_wire_and_disk_apart() -> None:
    """A queue, or a disk, would make the link look slow; a failed load took no time."""
    heard = list[tuple[str, int, float]]()

    class Fit(CostFit):
        def load(self, num_bytes: int, seconds: float) -> None:
            heard.append(("load", num_bytes, seconds))

        def read(self, num_bytes: int, seconds: float) -> None:
            heard.append(("read", num_bytes, seconds))

    inner = LoadedAt()
    link = MeteredLink(inner, Fit())
    for load_id, num_bytes in ((1, 100), (2, 30), (3, 7)):
        link.start(order(load_id, num_bytes))
    inner.finish(1)
    inner.fail(2)
    assert len(link.poll()) == 5  # three layers and two endings, passed on as they are
    link.start(order(4, 1))
    inner.finish(3)
    inner.finish(4)
    events = link.poll()
    assert [type(event) for event in events if isinstance(event, Loaded | LoadFailed)] == [
        Loaded,
        Loaded,
    ]
    assert heard == [
        ("load", 100, 0.25), ("load", 7, 0.75), ("load", 1, 1.0), ("read", 1, 8.0)
    ]  # fmt: skip
    inner.start(order(4, 1))  # a link that ends one load twice, which residency passes over too
    inner.finish(4)
    assert link.poll() and len(heard) == 4
    link.cancel(3)
    link.want([make_card("next")])
    assert inner.cancelled == [3] and [card.key.name for card in inner.wanted] == ["next"]


def test_a_link_without_a_clock_teaches_nothing() -> None:
    fit, inner = CostFit(), FakeLink(instant=True)
    link = MeteredLink(inner, fit)
    link.start(order(1, 100))
    assert link.poll() and fit.report().num_loads == 0


def test_a_step_with_cold_rows_teaches_nothing() -> None:
    """Waits for a load, or for helpers, learnt as the device's own: every later prediction off."""
    fit, steps = CostFit(), list[MeteredStep]()
    meter, bench = StepMeter(fit, log=steps.append), make_bench()
    bench.tell(submit(1))
    bench.step()
    state = bench.engine._state  # pyright: ignore[reportPrivateUsage]
    run = PlannedRun(state.rows()[0], 3, 1, 0)
    awaited = awaits(state, StepPlan(now_s=0.0, runs=(run,)))
    for began_s, is_cold in ((1.0, True), (2.0, False)):
        meter.takes_off(awaited, state, began_s, is_cold=is_cold)
        meter.landed(began_s + 0.5)
    assert [step.ended_s for step in steps] == [1.5, 2.5], "a step is missing in the log"
    assert fit._steps.num_rows == 1  # pyright: ignore[reportPrivateUsage]
    assert math.isnan(steps[0].predicted_s)
