"""The cost model learns from steps and loads, and is judged by what it had not seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorry.server.scheduling.accuracy import JudgedSteps, judge
from lorry.server.scheduling.cost_fit import MIN_STEPS, CostFit
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.step_work import NO_WORK, StepWork, TimedStep, measure_work

TRUTH = CostModel((4e-3, 5e-4, 3e-5, 2e-8, 1e-4, 3e-7, 2e-4, 4e-10, 5e-12))


def draw_steps(seed: int, count: int, *, noise: float = 0.03) -> list[TimedStep]:
    """Batches as a server has them: a few prompts, many decoding rows, adapters of few sizes."""
    rng, steps = np.random.default_rng(seed), list[TimedStep]()
    sizes = np.array([0, 1_000_000, 4_000_000, 16_000_000])
    for _ in range(count):
        num_rows = int(rng.integers(1, 24))
        counts = np.where(rng.random(num_rows) < 0.2, rng.integers(2, 200, num_rows), 1)
        kinds = rng.integers(0, 4, num_rows)
        work = measure_work(rng.integers(0, 400, num_rows), counts, kinds - 1, sizes[kinds])
        steps.append(TimedStep(work, TRUTH.step_s(work) * float(np.exp(rng.normal(0.0, noise)))))
    return steps


def test_work_is_what_the_rows_say() -> None:
    """By hand: a prompt chunk behind 10 tokens, three decoding rows, two of one adapter."""
    work = measure_work(
        np.array([10, 7, 20, 3]), np.array([4, 1, 1, 1]), np.array([5, 5, 2, -1]),
        np.array([100, 100, 30, 0]),
    )  # fmt: skip
    assert work == StepWork(
        steps=1,
        prompt_chunks=1,
        prompt_tokens=4,
        prompt_pairs=11 + 12 + 13 + 14,
        decode_rows=3,
        decode_context=8 + 21 + 4,
        adapters=2,
        adapter_bytes=130,
        lora_token_bytes=5 * 100 + 30,
    )


def test_a_calibrated_model_predicts_its_first_step() -> None:
    """Admission by the model would begin blind at every start."""
    fit = CostFit(draw_steps(1, 300), source="calibrated")
    report = fit.report()
    assert (report.source, report.num_steps) == ("calibrated", 0) and math.isnan(report.r2)
    for step in draw_steps(2, 400):
        assert fit.step(*step) == pytest.approx(step.seconds, rel=0.2)
    report = fit.report()
    assert report.num_steps == 400 and report.r2 > 0.95 and report.mape < 0.04


def test_without_a_calibration_nothing_is_predicted_before_something_was_seen() -> None:
    """Zero seconds is a prediction too, and a wrong one."""
    fit, steps = CostFit(), draw_steps(3, 600)
    foretold = [fit.step(*step) for step in steps]
    assert [math.isnan(value) for value in foretold] == [True] * MIN_STEPS + [False] * (
        600 - MIN_STEPS
    )
    assert fit.report().source == "none" and fit.report().num_steps == 600 - MIN_STEPS
    late = [abs(a / step.seconds - 1.0) for a, step in zip(foretold, steps, strict=True)][300:]
    assert sum(late) / len(late) < 0.04


def test_a_step_is_predicted_before_it_is_learnt() -> None:
    """An error measured on what was just learnt says nothing of the next step."""
    fit, truth = CostFit(draw_steps(4, 100, noise=0.0), source="calibrated"), TRUTH
    odd = NO_WORK._replace(steps=1, decode_rows=5)
    assert fit.step(odd, 3.0 * truth.step_s(odd)) == pytest.approx(truth.step_s(odd), rel=1e-3)
    assert fit.report().mape == pytest.approx(2.0 / 3.0, rel=1e-3)


def test_errors_are_those_of_the_book() -> None:
    """By hand: errors 0.1, 0 and 0.3 s of 1, 2 and 3 s, whose variance is that of 1, 2, 3."""
    found = judge(np.array([1.1, 2.0, 2.7]), np.array([1.0, 2.0, 3.0]))
    assert found.num_steps == 3
    assert found.r2 == pytest.approx(1.0 - (0.01 + 0.09) / 2.0)
    assert found.mape == pytest.approx((0.1 + 0.0 + 0.1) / 3.0)
    assert judge(np.array([]), np.array([])).num_steps == 0
    assert math.isnan(judge(np.ones(2), np.ones(2)).r2)


def test_only_the_last_steps_are_judged() -> None:
    """A bad first minute would stand in the figures for ever."""
    judged = JudgedSteps(window=3)
    for predicted_s, seconds in [(9.0, 1.0), (1.1, 1.0), (2.0, 2.0), (2.7, 3.0)]:
        judged.add(predicted_s, seconds)
    assert judged.accuracy() == judge(np.array([2.7, 1.1, 2.0]), np.array([3.0, 1.0, 2.0]))


def test_loads_have_a_latency_and_a_bandwidth() -> None:
    """Small adapters would look free, or large ones as cheap as small ones."""
    fit, rng = CostFit(), np.random.default_rng(5)
    for _ in range(200):
        num_bytes = int(rng.integers(1, 64)) << 20
        fit.load(num_bytes, (2e-3 + num_bytes / 5e9) * float(np.exp(rng.normal(0.0, 0.05))))
    model = fit.model()
    assert model.load_s == pytest.approx(2e-3, rel=0.1)
    assert model.load_s_per_byte == pytest.approx(1 / 5e9, rel=0.1)
    assert model.load_time_s(50 << 20) == pytest.approx(2e-3 + (50 << 20) / 5e9, rel=0.05)
    assert fit.report().num_loads == 200


def test_reading_from_disk_is_learnt_apart() -> None:
    """An adapter in host memory would look as dear to bring back as one on disk, or the reverse."""
    fit, rng = CostFit(), np.random.default_rng(6)
    for _ in range(100):
        num_bytes = int(rng.integers(1, 64)) << 20
        fit.load(num_bytes, 1e-3 + num_bytes / 5e9)
        fit.read(num_bytes, num_bytes / 5e8 * float(np.exp(rng.normal(0.0, 0.05))))
    model = fit.model()
    assert model.read_s_per_byte == pytest.approx(1 / 5e8, rel=0.05)
    assert model.load_time_s(5_000_000) == pytest.approx(2e-3, rel=0.01)
    assert model.load_time_s(5_000_000, read=True) == pytest.approx(12e-3, rel=0.05)
    assert fit.report().num_loads == 100
