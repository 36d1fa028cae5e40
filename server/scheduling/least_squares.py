"""Least squares for durations: never negative, row by row or all rows at once.

Owns the arithmetic. What is minimised is the relative error, since steps last from milliseconds to
seconds: every row is divided by what it is predicted to take. (Divided by what it took, long rows
would count less than short ones of the same work, and the fit would be too low.) A row that is far
off what is usual counts as if it were less far off, after Huber: a step may wait for somebody
else's process. It still pulls a little, so that a machine that became slower for good is followed.
Old rows are forgotten, but never all that was known of a coefficient: what is kept says that it
is what it is now, so a night of decoding wears out nothing that is known of prompts, and the
first odd prompt of the morning is not the only one there is. Knows neither steps nor loads
(cost_fit.py); pure, no clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

FORGOTTEN = 0.002  # of what is known, at each row
KEPT = 0.02  # of what was known of a coefficient at most is never forgotten
FAR = 2.0  # typical errors from which on a row counts as if it were no farther off
MAX_FACTOR = 2.0  # a row is divided by its prediction, this far from what it took at most
# A direction that rows say so little about, as a share of what they say at all, stays as it is.
HOLD, HOLD_ALL = 1e-5, 1e-9
FIRST_ERROR = 0.25  # relative; what is typical before anything was seen
MIN_ERROR = 0.01  # typical errors are no smaller: else a clean start makes noise look far off
ERROR_RATE = 0.02  # how fast the typical error follows
NUM_ROUNDS = 20  # of weights and coefficients in turn, when all rows are there at once


class LeastSquares:
    """Starts from nothing, `coefs` all zero; `fit_all` makes one from rows."""

    def __init__(self, num_coefs: int) -> None:
        self.coefs: Numbers = np.zeros(num_coefs)
        self.num_rows = 0
        self.typical_error = FIRST_ERROR  # relative, of a prediction
        self._info: Numbers = np.zeros((num_coefs, num_coefs))  # what rows say, and about what
        self._pull: Numbers = np.zeros(num_coefs)  # info @ coefs, were there no sign to keep
        self._most: Numbers = np.zeros(num_coefs)  # that was ever known of each, of itself

    def predict(self, row: Numbers) -> float:
        return float(row @ self.coefs)

    def add(self, row: Numbers, seconds: float) -> None:
        """Raises ValueError: `seconds` is not above 0."""
        if not 0.0 < seconds < np.inf:
            raise ValueError(f"a row took {seconds} s; it must be finite and more than 0")
        predicted = self.predict(row)
        scale = min(max(predicted, seconds / MAX_FACTOR), seconds * MAX_FACTOR)
        error = abs(seconds - predicted) / scale
        weight = min(1.0, FAR * self.typical_error / max(error, 1e-12))
        self._learn_error(error)
        scaled = row / scale
        self._forget(FORGOTTEN * weight)
        self._info += weight * np.multiply.outer(scaled, scaled)
        self._pull += (weight * seconds / scale) * scaled
        self.coefs = solve_nonnegative(self._info, self._pull, self.coefs, hold=HOLD)
        self.num_rows += 1

    def restart(self, rows: Numbers, seconds: Numbers) -> None:
        """From all of these at once, in no order, forgetting none: rows [N, K], seconds [N]."""
        weights, scale = np.ones(len(rows)), seconds
        self.coefs[:] = 0.0
        for _ in range(NUM_ROUNDS):
            scaled = rows / scale[:, None]
            weighted = scaled * weights[:, None]
            self._info = weighted.T @ scaled
            self._pull = weighted.T @ (seconds / scale)
            self.coefs = solve_nonnegative(self._info, self._pull, self.coefs, hold=HOLD_ALL)
            predicted = rows @ self.coefs
            scale = np.clip(predicted, seconds / MAX_FACTOR, seconds * MAX_FACTOR)
            errors = np.abs(seconds - predicted) / scale
            self.typical_error = max(MIN_ERROR, float(np.median(errors)))
            weights = np.minimum(1.0, FAR * self.typical_error / np.maximum(errors, 1e-12))
        self.num_rows = len(rows)

    def _learn_error(self, error: float) -> None:
        """One far row moves it little, many make their distance the usual one."""
        seen = min(error, 3.0 * self.typical_error)
        self.typical_error += ERROR_RATE * (seen - self.typical_error)
        self.typical_error = max(MIN_ERROR, self.typical_error)

    def _forget(self, share: float) -> None:
        """Of all rows alike; what is kept of a coefficient says that it is what it is now."""
        self._most = np.maximum(self._most, np.diagonal(self._info))
        self._info *= 1.0 - share
        self._pull *= 1.0 - share
        kept = share * KEPT * self._most
        self._info[np.diag_indices_from(self._info)] += kept
        self._pull += kept * self.coefs


def fit_all(rows: Numbers, seconds: Numbers) -> LeastSquares:
    """All rows at once: [N, K], and [N] durations above 0; at least one."""
    if len(rows) != len(seconds) or not len(rows) or not np.all(seconds > 0.0):
        raise ValueError(
            f"{len(rows)} rows and {len(seconds)} durations, of which "
            f"{int(np.sum(seconds > 0.0))} above 0; it must be one duration above 0 for each row"
        )
    fit = LeastSquares(rows.shape[1])
    fit.restart(np.asarray(rows, np.float64), np.asarray(seconds, np.float64))
    return fit


def solve_nonnegative(info: Numbers, pull: Numbers, start: Numbers, *, hold: float) -> Numbers:
    """Semantics: argmin over x >= 0 of x @ info @ x / 2 - pull @ x, by Lawson and Hanson's active
    set from `start`, itself >= 0, which directions that `info` says nothing about keep.
    """
    width = np.sqrt(np.diagonal(info))
    told = width > 0.0
    if not told.all():
        solved = start.copy()
        if told.any():
            part = np.ix_(told, told)
            solved[told] = solve_nonnegative(info[part], pull[told], start[told], hold=hold)
        return solved
    # In units in which every coefficient matters alike.
    now = start * width
    scaled: Any = info / np.multiply.outer(width, width)
    scaled[np.diag_indices_from(scaled)] += hold
    return _active_set(scaled, pull / width + hold * now, now) / width


def _active_set(info: Numbers, pull: Numbers, now: Numbers) -> Numbers:
    """`info` is positive definite with a diagonal of about 1."""
    free = now > 0.0
    tolerance = 1e-12 * float(np.abs(pull).max(initial=0.0))
    for _ in range(6 * len(now)):  # three times what it ever takes
        wish = _solve_free(info, pull, free)
        if np.all(wish[free] > 0.0):
            now = wish
            slope = np.where(free, -np.inf, pull - info @ now)
            best = int(slope.argmax())
            if slope[best] <= tolerance:
                break
            free[best] = True
            continue
        # As far towards the wish as all stay above zero; who reaches zero first is set there.
        falling = free & (wish <= 0.0)
        way = now[falling] / np.maximum(now[falling] - wish[falling], 1e-300)
        now = np.where(free, now + way.min() * (wish - now), 0.0)
        free &= now > 0.0
        free[np.flatnonzero(falling)[way.argmin()]] = False
        now = np.where(free, now, 0.0)
    return now


def _solve_free(info: Numbers, pull: Numbers, free: NDArray[np.bool_]) -> Numbers:
    if free.all():
        return np.asarray(np.linalg.solve(info, pull), np.float64)
    wish = np.zeros_like(pull)
    if free.any():
        wish[free] = np.linalg.solve(info[np.ix_(free, free)], pull[free])
    return wish
