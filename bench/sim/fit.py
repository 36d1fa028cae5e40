"""A profile of a live server, from what its own log and clients say while it serves one trace.

Owns the fit: the cost model of the server's steps, what the loop spends between two of them, and
the facts the server tells of itself; and how well the model foretells steps of another trace. Pure:
step logs and records go in. Called by versus.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...server.config import SchedulingConfig
from ...server.scheduling.accuracy import Accuracy, judge
from ...server.scheduling.cost_fit import TimedStep, fit_steps, work_rows
from ...server.scheduling.cost_model import StepCoefs
from ...server.scheduling.records import StepLimits
from ...server.step_meter import MeteredStep
from .front_end import FrontEnd
from .profile import STEP_UNITS, UNITS, Coefficient, Profile, step_names

# Two steps of a busy loop are closer than this; what is further apart was waited for.
MAX_GAP_S = 0.01
MIN_STEPS = 10 * len(STEP_UNITS)  # of A: ten for each coefficient


class TooFewSteps(Exception):
    """The log holds too little of the trace to fit anything to it."""


@dataclass(frozen=True, slots=True)
class FittedSteps:
    coefs_s: StepCoefs  # robust, of relative errors: no hiccup moves them
    # All seconds of the log over all that was foretold. A queue waits for hiccups too, so the
    # simulator's coefficients are these times `coefs_s`.
    stretch: float
    gap_s: float  # median, from the end of a step to the beginning of the next while busy
    num_steps: int

    def predict_s(
        self, steps: Sequence[MeteredStep]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return work_rows(_timed(steps)) @ np.array(self.coefs_s)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server says of itself, and was told."""

    model: str
    device: str
    num_pages: int
    page_bytes: int
    tokens_per_page: int
    max_model_len: int
    max_rank: int
    max_running: int
    max_step_tokens: int
    host_bytes: int
    overlaps: bool
    load_s: float  # by the server's own fit
    load_bytes_per_s: float
    num_loads: int  # that fit is of
    adapters: tuple[AdapterFacts, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    rank: int
    weight_bytes: int
    num_pages: int


def fit_runs(runs: Sequence[Sequence[MeteredStep]]) -> FittedSteps:
    """Raises:
    TooFewSteps: fewer than there are coefficients to be sure of.
    """
    steps = [step for run in runs for step in run]
    if len(steps) < MIN_STEPS:
        raise TooFewSteps(f"A left {len(steps)} steps; a fit needs {MIN_STEPS}")
    coefs = tuple(fit_steps(_timed(steps)).coefs.tolist())
    taken_s = sum(step.seconds for step in steps)
    gaps_s = [gap_s for run in runs for gap_s in _gaps_s(run)]
    found = FittedSteps(coefs, 1.0, float(np.median(gaps_s)) if gaps_s else 0.0, len(steps))
    return FittedSteps(
        coefs, taken_s / float(found.predict_s(steps).sum()), found.gap_s, len(steps)
    )


def judge_runs(fitted: FittedSteps, runs: Sequence[Sequence[MeteredStep]]) -> Accuracy:
    steps = [step for run in runs for step in run]
    return judge(fitted.predict_s(steps), np.array([step.seconds for step in steps]))


def make_profile(
    facts: ServerFacts, fitted: FittedSteps, front_end: FrontEnd, *, name: str, result: str
) -> Profile:
    """`result`: the file that holds what it was fitted on."""
    fit_source = (
        f"{result}: {fitted.num_steps} steps of workload A by {facts.device}, times "
        f"{fitted.stretch:.4f} so that their sum is right"
    )
    values = [coef * fitted.stretch for coef in fitted.coefs_s]
    values[0] += fitted.gap_s
    told = {key: (value, fit_source) for key, value in zip(step_names(), values, strict=True)}
    told["steps_s"] = (
        told["steps_s"][0],
        f"{fit_source}; and {1000 * fitted.gap_s:.2f} ms between two steps",
    )
    told |= _server_values(facts) | _front_values(front_end, result)
    return Profile(
        name=name,
        about=f"{facts.model} on {facts.device}, fitted on one trace by `lorry bench sim`.",
        coefficients={key: Coefficient(*_ordered(told[key], key)) for key in UNITS},
    )


def image_stretch(adapters: Sequence[AdapterFacts], page_bytes: int) -> float:
    """Bytes of pages for a byte of weights, so that all adapters together get the pages they have:
    the one with the fewest pages too many or too few. Never below 1.
    """
    fitting = {one.num_pages * page_bytes / one.weight_bytes for one in adapters}

    def num_wrong(stretch: float) -> int:
        return sum(
            abs(-int(-one.weight_bytes * stretch // page_bytes) - one.num_pages) for one in adapters
        )

    # A hair below each adapter's own most: rounding must not make a page of it.
    return min((max(1.0, most * (1 - 1e-9)) for most in sorted(fitting)), key=num_wrong)


def _server_values(facts: ServerFacts) -> dict[str, tuple[float, str]]:
    told, flags = "told by the server", "flags of the server"
    default = SchedulingConfig()
    bytes_per_rank = {one.weight_bytes / one.rank for one in facts.adapters}
    loads = f"the server's own fit of {facts.num_loads} loads before B, of both traces' adapters"
    return {
        "load_s": (facts.load_s, loads),
        "load_bytes_per_s": (facts.load_bytes_per_s, loads),
        "host_bytes": (facts.host_bytes, flags),
        "disk_bytes_per_s": (1e15, "assumed: none beside what the fit of loads has in it"),
        "num_pages": (facts.num_pages, told),
        "page_bytes": (facts.page_bytes, told),
        "tokens_per_page": (facts.tokens_per_page, told),
        "max_running": (facts.max_running, flags),
        "max_waiting": (default.max_waiting, flags),
        "max_step_tokens": (facts.max_step_tokens, flags),
        "max_bypass_s": (default.max_bypass_s, flags),
        "max_loads": (StepLimits(1, 1).max_loads, "server/scheduling/records.py"),
        "max_model_len": (facts.max_model_len, told),
        "max_rank": (facts.max_rank, told),
        "ttft_s": (default.ttft_s, flags),
        "tpot_s": (default.tpot_s, flags),
        "overlaps": (facts.overlaps, told),
        "adapter_bytes_per_rank": (round(max(bytes_per_rank)), told),
        "image_stretch": (
            image_stretch(facts.adapters, facts.page_bytes),
            "pages and bytes of the uploaded adapters",
        ),
    }


def _front_values(front_end: FrontEnd, result: str) -> dict[str, tuple[float, str]]:
    source = f"{result}: requests alone, client's TTFT less the engine's queue and prefill"
    half = f"{source}; half of it there, half back, since only the sum shows"
    return {
        "request_s": (front_end.base_s / 2, half),
        "request_s_per_token": (front_end.per_token_s, source),
        "reply_s": (front_end.base_s / 2, half),
    }


def _ordered(told: tuple[float, str], name: str) -> tuple[float, str, str]:
    value, source = told
    return float(value), UNITS[name], source


def _timed(steps: Sequence[MeteredStep]) -> list[TimedStep]:
    return [TimedStep(step.work, step.seconds) for step in steps]


def _gaps_s(run: Sequence[MeteredStep]) -> list[float]:
    gaps_s = [after.ended_s - after.seconds - before.ended_s for before, after in pairwise(run)]
    return [max(gap_s, 0.0) for gap_s in gaps_s if gap_s < MAX_GAP_S]
