"""The cost model: how long a step takes, and how long a load.

Linear in what a step does (step_work.py), with coefficients in seconds a unit, never negative:
more work is never less time. After CaraServe's linear decode model in the ranks of a batch, with
context, prompts and loads added. Snapshots of what cost_fit.py has learnt, and numbers of profiles
for the simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .step_work import NO_WORK, StepWork

StepCoefs = tuple[float, ...]  # in the order of StepWork's fields


@dataclass(frozen=True, slots=True)
class CostModel:
    step_coefs_s: StepCoefs  # seconds a unit of each field of StepWork
    load_s: float = 0.0  # a load takes at least this
    load_s_per_byte: float = 0.0  # 1 / bandwidth of the link
    read_s_per_byte: float = 0.0  # 1 / bandwidth of the disk, for what is not in host memory

    def step_s(self, work: StepWork) -> float:
        return sum(coef * amount for coef, amount in zip(self.step_coefs_s, work, strict=True))

    def load_time_s(self, num_bytes: int, *, read: bool = False) -> float:
        """From order to resident, with disk and link free for it; `read`: from disk."""
        seconds = self.load_s + self.load_s_per_byte * num_bytes
        return seconds + self.read_s_per_byte * num_bytes if read else seconds

    def named_step_coefs_s(self) -> dict[str, float]:
        """By the name of the amount, in the order of StepWork."""
        return dict(zip(StepWork._fields, self.step_coefs_s, strict=True))


NO_MODEL = CostModel((0.0,) * len(NO_WORK))


@dataclass(frozen=True, slots=True)
class CostReport:
    """The model now, where it comes from, and how well it foretold the steps that came."""

    model: CostModel = NO_MODEL
    source: str = "none"  # calibrated, cached, none: what it started with
    num_steps: int = 0  # the last ones, predicted before they ran: of these the two below
    r2: float = math.nan  # share of the variance of their seconds that was foretold
    mape: float = math.nan  # mean of |predicted - taken| / taken
    num_loads: int = 0  # the load times were learnt from


NO_REPORT = CostReport()
