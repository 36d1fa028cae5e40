"""How good predictions were: of durations that were told before they were seen.

Owns the two measures and the window they are taken over. Called by cost_fit.py for each step, and
by the benches for steps kept in files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000  # the last so many


@dataclass(frozen=True, slots=True)
class Accuracy:
    num_steps: int  # judged
    r2: float  # share of the durations' variance that was foretold, 1 at best; nan: too few steps
    mape: float  # mean of |predicted - taken| / taken; nan: no steps


NO_ACCURACY = Accuracy(0, math.nan, math.nan)


def judge(predicted_s: NDArray[np.float64], seconds: NDArray[np.float64]) -> Accuracy:
    """Both [N]; durations above 0."""
    if not len(seconds):
        return NO_ACCURACY
    errors = predicted_s - seconds
    spread = float(np.square(seconds - seconds.mean()).sum())
    return Accuracy(
        num_steps=len(seconds),
        r2=1.0 - float(np.square(errors).sum()) / spread if spread > 0.0 else math.nan,
        mape=float(np.abs(errors / seconds).mean()),
    )


class JudgedSteps:
    """The last `WINDOW` predictions and what came."""

    def __init__(self, window: int = WINDOW) -> None:
        self._pairs = np.zeros((2, window))
        self._num_added = 0

    def add(self, predicted_s: float, seconds: float) -> None:
        at = self._num_added % self._pairs.shape[1]
        self._pairs[0, at], self._pairs[1, at] = predicted_s, seconds
        self._num_added += 1

    def accuracy(self) -> Accuracy:
        held = self._pairs[:, : min(self._num_added, self._pairs.shape[1])]
        return judge(held[0], held[1])
