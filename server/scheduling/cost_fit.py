"""What the server has learnt of its own speed: fed each step, load and read, asked for a model.

Owns the fits (least_squares.py) and the judgement: every step is predicted before it is learnt
from, so the error that is published is of steps the model had not seen. Starts from the steps of a
calibration, or from nothing; then it predicts nothing until it has seen some. A `CostModel` is a
snapshot, and cheap. Pure, no clock; called by the engine's meter, and by the benches on step logs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .accuracy import JudgedSteps
from .cost_model import CostModel, CostReport
from .least_squares import LeastSquares, fit_all
from .step_work import StepWork, TimedStep

NUM_COEFS = len(StepWork._fields)
MIN_STEPS = 4 * NUM_COEFS  # before the first prediction: fewer say too little about too much
NUM_LOAD_COEFS = 2  # one load, one byte
NUM_READ_COEFS = 1  # one byte


class CostFit:
    """`calibration`: timed steps to begin with; `source` says where they came from."""

    def __init__(self, calibration: Sequence[TimedStep] = (), *, source: str = "none") -> None:
        self._steps = fit_steps(calibration) if calibration else LeastSquares(NUM_COEFS)
        self._loads = LeastSquares(NUM_LOAD_COEFS)
        self._reads = LeastSquares(NUM_READ_COEFS)
        self._source = source
        self._judged = JudgedSteps()

    def step(self, work: StepWork, seconds: float) -> float:
        """Learns one; returns what was predicted for it, nan where nothing was known yet."""
        row, predicted_s = np.array(work, np.float64), math.nan
        if self._steps.num_rows >= MIN_STEPS or self._source != "none":
            predicted_s = self._steps.predict(row)
            self._judged.add(predicted_s, seconds)
        self._steps.add(row, seconds)
        return predicted_s

    def load(self, num_bytes: int, seconds: float) -> None:
        """Learns how long an adapter took from host memory to the pool, on a link free for it."""
        self._loads.add(np.array((1.0, num_bytes)), seconds)

    def read(self, num_bytes: int, seconds: float) -> None:
        """Learns how long an adapter took from disk to host memory."""
        self._reads.add(np.array((num_bytes,), np.float64), seconds)

    def model(self) -> CostModel:
        load_s, load_s_per_byte = self._loads.coefs.tolist()
        (read_s_per_byte,) = self._reads.coefs.tolist()
        steps = tuple(self._steps.coefs.tolist())
        return CostModel(steps, load_s, load_s_per_byte, read_s_per_byte)

    def report(self) -> CostReport:
        found = self._judged.accuracy()
        return CostReport(
            model=self.model(),
            source=self._source,
            num_steps=found.num_steps,
            r2=found.r2,
            mape=found.mape,
            num_loads=self._loads.num_rows,
        )


def fit_steps(steps: Sequence[TimedStep]) -> LeastSquares:
    """All at once, none weighing more for being later."""
    return fit_all(work_rows(steps), np.array([step.seconds for step in steps]))


def work_rows(steps: Sequence[TimedStep]) -> NDArray[np.float64]:
    """[N, number of coefficients]."""
    return np.array([step.work for step in steps], np.float64).reshape(-1, NUM_COEFS)
