"""The step split: milliseconds of one step by what they were spent on.

Pure: timed steps in, medians by kind of step out. A decode step has one token of every request,
a prefill step as many prompt tokens as fit; others are no kind of their own. Owns the parts'
names and meanings. Does not know how a step was timed (split_probe.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What a step is made of. The first five are timed where they are called.
PARTS = {
    "products": "the base's linears and the head",
    "attention": "storing keys and values, attending over pages",
    "sampling": "from logits to tokens on the host",
    "planning": "the engine around the runner: plan, pages, commit, publish",
    "python": "the rest: batch tensors, norms, rotary, residuals and Python",
    "lora": "what a step with adapters takes longer than the same step without",
}
# Outermost first; a part that is open inside another stops the other's clock.
OUTER = "planning"


@dataclass(frozen=True, slots=True)
class TimedStep:
    num_tokens: int  # computed in it
    num_rows: int  # requests in it
    spent_s: Mapping[str, float]  # by part; only `planning` when nothing inside was timed

    @property
    def total_s(self) -> float:
        return sum(self.spent_s.values())


@dataclass(frozen=True, slots=True)
class StepSplit:
    """One kind of step, in milliseconds; medians over all steps of the kind."""

    num_steps: int  # timed ones
    step_ms: float  # with the parts timed
    untimed_ms: float  # the same step without the timing of its parts
    parts_ms: Mapping[str, float]  # add up to step_ms


def is_decode(step: TimedStep, num_requests: int) -> bool:
    return step.num_tokens == step.num_rows == num_requests


def is_prefill(step: TimedStep, max_step_tokens: int) -> bool:
    return step.num_tokens == max_step_tokens


def split_base(timed: Sequence[TimedStep], untimed: Sequence[TimedStep]) -> StepSplit:
    """Of steps of one kind without adapters. Means, so that the parts add up."""
    parts_ms = {
        part: 1e3 * statistics.fmean(step.spent_s.get(part, 0.0) for step in _middle(timed))
        for part in PARTS
        if part != "lora"
    }
    return StepSplit(len(timed), sum(parts_ms.values()), _untimed_ms(untimed), parts_ms)


def split_lora(
    base: StepSplit, timed: Sequence[TimedStep], untimed: Sequence[TimedStep]
) -> StepSplit:
    """The same kind of step with adapters: what it takes longer is theirs, wherever it was."""
    step_ms = 1e3 * statistics.fmean(step.total_s for step in _middle(timed))
    parts_ms = {**base.parts_ms, "lora": step_ms - base.step_ms}
    return StepSplit(len(timed), step_ms, _untimed_ms(untimed), parts_ms)


def _untimed_ms(steps: Sequence[TimedStep]) -> float:
    return 1e3 * statistics.fmean(step.total_s for step in _middle(steps))


def _middle(steps: Sequence[TimedStep]) -> Sequence[TimedStep]:
    """Without the slowest and the fastest quarter: one disturbed step moves no part."""
    ordered = sorted(steps, key=lambda step: step.total_s)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def split_lines(splits: Mapping[str, Mapping[str, StepSplit]]) -> list[str]:
    """`splits`: by load (base, lora), then by kind of step."""
    lines: list[str] = []
    for load, kinds in splits.items():
        for kind, split in kinds.items():
            parts = ", ".join(
                f"{part} {ms:.1f} ({ms / split.step_ms:.0%})" for part, ms in split.parts_ms.items()
            )
            lines.append(
                f"{load}, {kind} step: {split.step_ms:.1f} ms ({split.untimed_ms:.1f} untimed): "
                f"{parts}"
            )
    return lines
