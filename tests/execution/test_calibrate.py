"""Calibration: which steps are timed, what they leave behind, and the file that keeps them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry.server.calibration import (
    FOLDER,
    BadCalibration,
    calibrated_fit,
    key_of,
    read_calibration,
    write_calibration,
)
from lorry.server.config import CostConfig, ModelConfig, ServerConfig, ServiceConfig
from lorry.server.execution.batch import StepCapacity, StepResult, StepRow
from lorry.server.execution.calibrate import NUM_ROUNDS, RANKS, design, time_steps
from lorry.server.execution.model import prepare_model
from lorry.server.execution.runner import Runner
from lorry.server.execution.warm_up import warm_up_layout
from lorry.server.scheduling.cost_fit import MIN_STEPS
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.step_work import StepWork, TimedStep
from lorry.tests.execution_builders import tiny_llama
from lorry.tests.fakes import FakeClock

LIMITS = StepCapacity(max_running=16, max_step_tokens=128, max_model_len=256, max_rows=16)
NUM_PAGES = 600
# Powers of two apart from each other, so that a wrong amount shows.
TRUTH = CostModel((1e-3, 2e-3, 1e-5, 1e-8, 3e-4, 2e-7, 5e-4, 1e-9, 1e-11))


class TimedRunner(Runner):
    """Computes nothing: its clock moves by what `TRUTH` says of the rows it is given."""

    clock: FakeClock
    num_steps = 0

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        assert [row.adapter_slot for row in rows] == sorted(row.adapter_slot for row in rows)
        bytes_of = {slot: self.bytes_of[slot] for slot in {row.adapter_slot for row in rows} - {-1}}
        prompts = [row for row in rows if row.num_tokens > 1]
        decodes = [row for row in rows if row.num_tokens == 1]
        work = StepWork(
            1,
            len(prompts),
            sum(row.num_tokens for row in prompts),
            sum(row.start + i + 1 for row in prompts for i in range(row.num_tokens)),
            len(decodes),
            sum(row.start + 1 for row in decodes),
            len(bytes_of),
            sum(bytes_of.values()),
            sum(row.num_tokens * bytes_of.get(row.adapter_slot, 0) for row in rows),
        )
        self.num_steps += 1
        self.clock.advance(TRUTH.step_s(work))
        return StepResult({})

    def attach(self, slot: int, layout: Any, pages: Sequence[int]) -> None:
        super().attach(slot, layout, pages)
        self.bytes_of[slot] = 4 * layout.used_elements
        self.pages_of[slot] = set(pages)

    def detach(self, slot: int) -> None:
        super().detach(slot)
        del self.bytes_of[slot]


def make_runner(kind: type[Runner] = TimedRunner, *, num_pages: int = NUM_PAGES) -> Any:
    runner = kind(prepare_model(tiny_llama()), num_pages=num_pages, limits=LIMITS)
    if isinstance(runner, TimedRunner):
        runner.clock, runner.bytes_of, runner.pages_of = FakeClock(), {}, {}
    return runner


def make_config(store: Path, calibrate_s: float = 1000.0) -> ServerConfig:
    return ServerConfig(
        ModelConfig("model"),
        service=ServiceConfig(store=store),
        cost=CostConfig(calibrate_s=calibrate_s),
    )


@pytest.mark.parametrize(
    "limits",
    [
        StepCapacity(max_running=64, max_step_tokens=1024, max_model_len=4096, max_rows=64),
        StepCapacity(max_running=1, max_step_tokens=1, max_model_len=1, max_rows=1),
        StepCapacity(max_running=8, max_step_tokens=20, max_model_len=300, max_rows=9, max_rank=4),
    ],
)
def test_designed_steps_fit_the_limits(limits: StepCapacity) -> None:
    """Broken: a server that does not start because of steps nobody asked for."""
    steps = design(limits, num_pool_tokens=5000)
    sizes = [sum(part.num_rows * part.num_tokens for part in step) for step in steps]
    assert sizes == sorted(sizes) and len(set(steps)) == len(steps)
    for step in steps:
        assert all(part.start >= 0 and part.num_tokens > 0 for part in step)
        assert sum(part.num_rows for part in step) <= limits.max_running
        assert sum(part.num_rows * part.num_tokens for part in step) <= limits.max_step_tokens
        assert all(part.start + part.num_tokens <= limits.max_model_len for part in step)
        assert all(part.rank <= limits.max_rank for part in step)
        assert all(part.num_slots <= part.num_rows for part in step)


def test_what_the_runner_takes_is_what_is_learnt() -> None:
    """Broken: work that is not that of the rows, or a time that is not that of the work."""
    runner = make_runner()
    steps = time_steps(runner, runner.clock, budget_s=1000.0)
    assert len(steps) * 2 == runner.num_steps and len(steps) > MIN_STEPS
    assert len(steps) % NUM_ROUNDS == 0
    for step in steps:
        assert step.seconds == pytest.approx(TRUTH.step_s(step.work))
    largest = {name: max(getattr(s.work, name) for s in steps) for name in StepWork._fields}
    assert min(largest.values()) > 0, largest
    assert {len(s) for s in runner.pages_of.values()} == {
        warm_up_layout(runner.info().image_spec, rank).num_pages for rank in RANKS
    }
    held = list(runner.pages_of.values())
    assert sum(map(len, held)) == len(set[int]().union(*held)), "adapters share pages"


def test_a_real_runner_is_left_as_warm_up_leaves_it() -> None:
    """Broken: numbers of a made-up step in a page that a request is given."""
    runner = make_runner(Runner, num_pages=64)
    runner.poison(range(64))
    runner.clear()

    class Ticking(FakeClock):
        """A budget of so many looks, for a real runner takes real time."""

        def now_s(self) -> float:
            self.advance(1.0)
            return super().now_s()

    steps = time_steps(runner, Ticking(), budget_s=30.0)
    # One look to begin with; then one before each step and two around its second run.
    assert len(steps) == 10 and all(step.seconds == 1.0 for step in steps)
    assert torch.count_nonzero(runner.pool_PE) == 0
    layout = warm_up_layout(runner.info().image_spec, 8)
    runner.attach(0, layout, range(layout.num_pages))  # refused when the slot is still taken


def test_a_pool_without_room_for_adapters_times_the_base() -> None:
    """Broken: a small pool, where a step would be given an adapter that is not there."""
    runner = make_runner(num_pages=3)
    steps = time_steps(runner, runner.clock, budget_s=1000.0)
    assert steps and all(step.work.adapters == 0 for step in steps)


def test_the_second_start_reads_what_the_first_one_timed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken: seconds of every start; or a planner that is told other numbers than were timed."""
    caplog.set_level(logging.INFO, logger="lorry")
    runner, config = make_runner(), make_config(tmp_path)
    first = calibrated_fit(runner, config, runner.clock)
    num_steps, began_s = runner.num_steps, runner.clock.now_s()
    second = calibrated_fit(runner, config, runner.clock)
    assert (runner.num_steps, runner.clock.now_s()) == (num_steps, began_s)
    assert (first.report().source, second.report().source) == ("calibrated", "cached")
    assert second.model() == first.model()
    work = StepWork(1, 0, 0, 0, 12, 3000, 4, 40_000, 120_000)
    assert first.model().step_s(work) == pytest.approx(TRUTH.step_s(work), rel=0.01)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    (path,) = (tmp_path / FOLDER).iterdir()
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: json.dumps(json.loads(text) | {"steps": [[1] * 10] * 3}),
        lambda text: json.dumps(json.loads(text) | {"steps": [[1] * 9 + [0.0]] * 99}),
        lambda text: json.dumps(json.loads(text) | {"steps": [[1] * 8 + [1.0]] * 99}),
        lambda text: json.dumps(json.loads(text) | {"steps": [[math.inf] * 9 + [1.0]] * 99}),
        lambda text: json.dumps(json.loads(text) | {"key": ["other"]}),
        lambda text: text.replace('"float32"', '"bfloat16"'),
    ],
    ids=["empty", "cut", "list", "few", "zero", "narrow", "endless", "keyless", "foreign"],
)
def test_a_broken_or_foreign_file_is_made_again_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    """Broken: a server that does not start, or one that plans with another machine's times."""
    runner, config = make_runner(), make_config(tmp_path)
    fit = calibrated_fit(runner, config, runner.clock)
    (path,) = (tmp_path / FOLDER).iterdir()
    good = path.read_text()
    path.write_text(damage(good))
    again = calibrated_fit(runner, config, runner.clock)
    assert again.report().source == "calibrated"
    assert again.model().step_coefs_s == pytest.approx(fit.model().step_coefs_s, rel=1e-6)
    assert "is made again" in caplog.text
    assert len(read_calibration(path, key_of(runner, config))) == len(json.loads(good)["steps"])


def test_what_was_made_for_another_server_is_named(tmp_path: Path) -> None:
    """Broken: the times of eight threads taken for those of one."""
    runner, config = make_runner(), make_config(tmp_path)
    key = key_of(runner, config)
    steps = [TimedStep(StepWork(*range(1, 10)), 0.5)] * MIN_STEPS
    path = tmp_path / "file.json"
    write_calibration(path, replace(key, num_threads=8, torch="0.1"), steps)
    with pytest.raises(BadCalibration, match="another num_threads, torch"):
        read_calibration(path, key)
    write_calibration(path, key, steps)
    assert read_calibration(path, key) == steps
    names = {replace(key, **{name: "other"}).file_name for name in asdict(key)}
    assert len(names | {key.file_name}) == len(asdict(key)) + 1, "a setting is not in the name"


def test_no_time_no_calibration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Broken: predictions for all sizes, learnt from the three smallest; or those thrown away."""
    runner = make_runner()
    assert (
        calibrated_fit(runner, make_config(tmp_path, 0.0), runner.clock).report().source == "none"
    )
    assert runner.num_steps == 0 and not caplog.records
    fit = calibrated_fit(runner, make_config(tmp_path, 0.05), runner.clock)
    assert fit.report().source == "none" and 0 < runner.num_steps < 2 * MIN_STEPS
    assert "are too few" in caplog.text and "--calibrate is 0.05 s" in caplog.text
    assert any(fit.model().step_coefs_s) and math.isnan(fit.step(StepWork(*[1] * 9), 0.1))
    assert not (tmp_path / FOLDER).exists()
