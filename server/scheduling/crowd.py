"""Who is in a step, and who stands before a newcomer: what others will take, foretold.

Owns the sums of one plan: the work of this step, what helpers compute in it, and the prompts that
it has no part of, which the device computes before any newcomer's. Answers with a `Beside`. Knows
no loads and no pages. Used by cold_rows.py.
"""

from __future__ import annotations

from typing import NamedTuple

from .cold_start import Beside
from .starts import StartPrices
from .step_work import NO_WORK, StepWork, add_work, row_work


class Chunk(NamedTuple):
    """One row's part of this step, and of later ones."""

    start: int  # tokens computed before this step
    num_tokens: int  # in this step; 0: it is not in it
    num_left: int  # of what it knows, behind this step
    adapter_bytes: int  # of its weights; 0: the base
    is_helped: bool = False  # helpers have a part in it
    calls_share: float = 0.0  # of a step's hand-overs, those of it that no row before it has


class Crowd:
    """`chunk_tokens`: of a step, at most."""

    def __init__(self, prices: StartPrices, chunk_tokens: int) -> None:
        self._prices, self._chunk_tokens = prices, chunk_tokens
        self._work = self._decoding = self._ahead = NO_WORK
        self._helpers_s = self._calls_s = 0.0

    def take(self, chunk: Chunk) -> None:
        """It is in this step, or is computed before the next newcomer."""
        start, num_tokens, num_left, num_bytes, is_helped, calls_share = chunk
        if num_tokens:
            work = row_work(start, num_tokens, num_bytes)
            self._work = add_work(self._work, work)
            if num_tokens == 1:
                self._decoding = add_work(self._decoding, work)
        if num_left:
            later = row_work(start + num_tokens, num_left, num_bytes)
            self._ahead = add_work(self._ahead, later)
        if is_helped:
            costs = self._prices.help
            self._helpers_s += costs.compute_s(num_tokens * num_bytes)
            self._calls_s += calls_share * costs.calls_s

    def beside(self, num_tokens: int) -> Beside:
        """Of a newcomer for whom this step has so many tokens left."""
        later_s = self._step_s(self._decoding)
        num_steps = -(-self._ahead.prompt_tokens // self._chunk_tokens)
        between_s = later_s or self._prices.steps.step_s(NO_WORK._replace(steps=1))
        return Beside(
            turn_s=self._step_s(self._work),
            later_s=later_s,
            ahead_s=self._prices.steps.step_s(self._ahead) + num_steps * between_s,
            helpers_s=self._helpers_s,
            called_s=self._calls_s,
            num_tokens=num_tokens,
        )

    def _step_s(self, work: StepWork) -> float:
        """Of a step with that in it; 0: there is nobody."""
        return self._prices.steps.step_s(work._replace(steps=1)) if work != NO_WORK else 0.0
