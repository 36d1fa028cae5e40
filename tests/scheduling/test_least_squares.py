"""The arithmetic of the fits: known coefficients come back, whatever the noise does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.least_squares import LeastSquares, fit_all, solve_nonnegative

TRUE = np.array([5e-3, 0.0, 2e-5, 3e-10])  # a constant, something free, tokens, bytes


def draw_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    tokens = rng.integers(0, 500, count)
    sizes = rng.choice([1e6, 4e6, 3e7], count) * rng.integers(0, 4, count)
    return np.stack([np.ones(count), rng.integers(0, 9, count), tokens, sizes], axis=1)


def draw_seconds(rng: np.random.Generator, rows: np.ndarray, noise: float = 0.05) -> np.ndarray:
    return rows @ TRUE * np.exp(rng.normal(0.0, noise, len(rows)))


def feed(fit: LeastSquares, rows: np.ndarray, seconds: np.ndarray) -> LeastSquares:
    for row, taken_s in zip(rows, seconds.tolist(), strict=True):
        fit.add(row, taken_s)
    return fit


def worst(fit: LeastSquares, rows: np.ndarray, factor: float = 1.0) -> float:
    """Largest relative error of a prediction without noise."""
    return float(np.abs(rows @ fit.coefs / (factor * (rows @ TRUE)) - 1.0).max())


@pytest.mark.parametrize("online", [False, True])
def test_known_coefficients_come_back(online: bool) -> None:
    """A planner would trust numbers that no step ever showed."""
    rng = np.random.default_rng(1)
    rows = draw_rows(rng, 1500)
    seconds = draw_seconds(rng, rows)
    fit = feed(LeastSquares(4), rows, seconds) if online else fit_all(rows, seconds)
    # 1,500 rows of 5 % noise leave about 0.05 / sqrt(1500 / 4) = 0.3 %; forgetting keeps 500.
    assert worst(fit, rows) < 0.02
    assert fit.coefs[1] * 9 < 0.01 * TRUE[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_no_coefficient_is_negative_and_no_other_point_is_better(seed: int) -> None:
    """More work would take less time; or the sign is bought with a worse fit than need be."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 10))
    rows = rng.normal(size=(int(rng.integers(1, 40)), width)) * 10.0 ** rng.integers(-6, 6, width)
    info, pull = rows.T @ rows, rows.T @ rng.normal(size=len(rows))
    start = np.maximum(rng.normal(size=width), 0.0) / np.sqrt(np.diagonal(info))
    found = solve_nonnegative(info, pull, start, hold=1e-5)
    assert (found >= 0.0).all()
    # Kuhn and Tucker, in units in which all coefficients matter alike; `hold` is part of the task.
    unit = np.sqrt(np.diagonal(info))
    slope = (pull - info @ found) / unit + 1e-5 * (start - found) * unit
    size = np.abs(pull / unit).max() + 1e-5
    assert np.abs(slope[found > 0.0]).max(initial=0.0) < 1e-6 * size
    assert slope[found == 0.0].max(initial=0.0) < 1e-6 * size


def test_drift_is_followed() -> None:
    """A machine that is throttled, or shares its cores from now on, would be planned for as it
    was."""
    rng = np.random.default_rng(2)
    rows = draw_rows(rng, 3000)
    fit = feed(LeastSquares(4), rows, draw_seconds(rng, rows))
    feed(fit, rows[:1500], 2.0 * draw_seconds(rng, rows[:1500]))
    assert worst(fit, rows, 2.0) < 0.12  # and 0.5 where nothing is followed


@pytest.mark.parametrize("factor", [20.0, 200.0])
def test_a_hiccup_moves_little(factor: float) -> None:
    """One step that waited for somebody else's process would be every later step's prediction."""
    rng = np.random.default_rng(3)
    rows = draw_rows(rng, 1000)
    fit = feed(LeastSquares(4), rows, draw_seconds(rng, rows))
    before = rows @ fit.coefs
    fit.add(rows[0], factor * float(rows[0] @ TRUE))
    assert np.abs(rows @ fit.coefs / before - 1.0).max() < 0.01
    plain = np.linalg.lstsq(
        np.vstack([rows, rows[:1]]),
        np.append(rows @ TRUE, factor * float(rows[0] @ TRUE)),
        rcond=None,
    )[0]
    assert np.abs(rows @ plain / (rows @ TRUE) - 1.0).max() > 0.01  # it would have mattered


def test_hiccups_move_all_rows_at_once_as_little() -> None:
    """Calibration happens while a machine is busy starting other things."""
    rng = np.random.default_rng(4)
    rows = draw_rows(rng, 400)
    seconds = draw_seconds(rng, rows)
    seconds[::40] *= 30.0
    assert worst(fit_all(rows, seconds), rows) < 0.03


def test_what_is_not_seen_any_more_is_not_forgotten() -> None:
    """After a night without prompts, the first odd one would be all that is known of prompts."""
    rng = np.random.default_rng(5)
    rows = draw_rows(rng, 1000)
    fit = feed(LeastSquares(4), rows, draw_seconds(rng, rows))
    night = draw_rows(rng, 4000)
    night[:, 2] = 0.0
    feed(fit, night, draw_seconds(rng, night))
    assert fit.coefs[2] == pytest.approx(TRUE[2], rel=0.05)
    odd = np.array([1.0, 0.0, 300.0, 0.0])
    fit.add(odd, 5.0 * float(odd @ TRUE))
    assert fit.coefs[2] == pytest.approx(TRUE[2], rel=0.15)


def test_a_direction_nobody_saw_keeps_its_value() -> None:
    """Two amounts that always come together say nothing about either: no sum is torn apart."""
    rng = np.random.default_rng(6)
    rows = np.stack([np.ones(200), *[rng.integers(1, 50, 200)] * 2], axis=1).astype(float)
    calibrated = np.stack([np.ones(90), *rng.integers(0, 50, (2, 90))], axis=1).astype(float)
    fit = fit_all(calibrated, calibrated @ np.array([1e-3, 3e-4, 1e-4]))
    feed(fit, rows, rows @ np.array([1e-3, 3e-4, 1e-4]))
    assert fit.coefs == pytest.approx([1e-3, 3e-4, 1e-4], rel=1e-3)


def test_same_rows_same_coefficients() -> None:
    """A replayed run would plan otherwise."""
    rng = np.random.default_rng(7)
    rows = draw_rows(rng, 200)
    seconds = draw_seconds(rng, rows)
    fits = [feed(LeastSquares(4), rows, seconds) for _ in range(2)]
    assert fits[0].coefs.tolist() == fits[1].coefs.tolist()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_row_takes_time(seconds: float) -> None:
    """Divided by zero once, every later prediction is no number."""
    with pytest.raises(ValueError, match="took"):
        LeastSquares(1).add(np.ones(1), seconds)


def test_durations_are_one_for_each_row() -> None:
    with pytest.raises(ValueError, match="3 rows and 2 durations, of which 1"):
        fit_all(np.ones((3, 1)), np.array([0.0, 1.0]))
