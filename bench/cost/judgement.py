"""Laws fitted to the steps of one trace and judged on those of another.

Owns the figures: R2 and MAPE on all steps, on those that only decode and on those with a prompt,
and how much worse a law is than the full one on the kind of step that a load is about, with an
interval by resampling stretches of neighbouring steps (neighbours are alike, so steps one by one
would claim too much). Pure: steps go in. Called by command.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...server.scheduling.accuracy import Accuracy, judge
from ...server.scheduling.least_squares import Numbers, fit_all
from ...server.step_meter import MeteredStep
from .laws import FULL, LAWS, Law, seconds_of

STRETCH = 50  # steps that are drawn together
MIN_STRETCHES = 10  # of a kind of step that there are few of, shorter ones are drawn
MIN_STRETCH = 10  # but no shorter than this: neighbours would count as strangers
DECODE, PROMPT = "decode", "prompt"  # kinds of steps: without a prompt's chunk, and with one
NUM_DRAWS = 1000
MIN_STEPS = 5 * STRETCH  # of either trace


class TooFewSteps(Exception):
    """Nothing can be said from so few."""


@dataclass(frozen=True, slots=True)
class LawResult:
    name: str
    what: str
    all_steps: Accuracy
    decode_steps: Accuracy
    prompt_steps: Accuracy
    # MAPE less that of the full law, on the load's kind of steps: middle and 95 % interval.
    worse: float
    worse_low: float
    worse_high: float
    coefs_s: tuple[float, ...]  # in the order of the law's columns


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one load."""

    num_fit: int  # steps
    num_judged: int
    kind: str  # of the steps that the load is about
    ceiling: Accuracy  # full law fitted to the judged steps themselves: with nothing unseen
    decode_ceiling: Accuracy
    online: Accuracy  # as the server foretold the judged steps while it learnt
    laws: tuple[LawResult, ...]


def judge_load(
    fit: Sequence[MeteredStep],
    judged: Sequence[MeteredStep],
    *,
    kind: str = DECODE,
    seed: int = 0,
) -> Judgement:
    """Raises TooFewSteps."""
    for name, steps in (("fitted", fit), ("judged", judged)):
        if len(steps) < MIN_STEPS:
            raise TooFewSteps(f"{len(steps)} {name} steps; at least {MIN_STEPS} are needed")
    seconds, decodes = seconds_of(judged), decode_places(judged)
    foretold = {law.name: _foretell(law, fit, judged) for law in LAWS}
    itself = _foretell(LAWS[0], judged, judged)[0]
    base_errors = np.abs(foretold[FULL][0] - seconds) / seconds
    wanted = decodes if kind == DECODE else ~decodes
    results: list[LawResult] = []
    for law in LAWS:
        predicted_s, coefs_s = foretold[law.name]
        errors = np.abs(predicted_s - seconds) / seconds
        extra = (errors - base_errors)[wanted]
        low, high = resampled_mean(extra, seed=seed)
        results.append(
            LawResult(
                law.name,
                law.what,
                judge(predicted_s, seconds),
                judge(predicted_s[decodes], seconds[decodes]),
                judge(predicted_s[~decodes], seconds[~decodes]),
                float(extra.mean()) if len(extra) else 0.0,
                low,
                high,
                tuple(coefs_s.tolist()),
            )
        )
    return Judgement(
        len(fit),
        len(judged),
        kind,
        ceiling=judge(itself, seconds),
        decode_ceiling=judge(itself[decodes], seconds[decodes]),
        online=_online(judged),
        laws=tuple(results),
    )


def decode_places(steps: Sequence[MeteredStep]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([step.work.prompt_chunks == 0 for step in steps], np.bool_)


def resampled_mean(values: Numbers, *, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of values whose neighbours belong together."""
    stretch = min(STRETCH, len(values) // MIN_STRETCHES)
    if stretch < MIN_STRETCH:
        return float("nan"), float("nan")
    num = len(values) // stretch
    sums = values[: num * stretch].reshape(num, stretch).mean(axis=1)
    drawn = np.random.default_rng(seed).integers(0, num, (NUM_DRAWS, num))
    low, high = np.quantile(sums[drawn].mean(axis=1), (0.025, 0.975)).tolist()
    return low, high


def _foretell(
    law: Law, fit: Sequence[MeteredStep], judged: Sequence[MeteredStep]
) -> tuple[Numbers, Numbers]:
    """Seconds of the judged steps, and the coefficients."""
    coefs_s = fit_all(law.columns(fit), seconds_of(fit)).coefs
    return law.columns(judged) @ coefs_s, coefs_s


def _online(steps: Sequence[MeteredStep]) -> Accuracy:
    foretold = np.array([step.predicted_s for step in steps])
    known = ~np.isnan(foretold)
    return judge(foretold[known], seconds_of(steps)[known])
