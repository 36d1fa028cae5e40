"""Answers side by side: are two rows of the table the same work, and do the adapters act?

Pure: token ids in, shares out. A row that skipped its adapters, or answered other prompts, would
be fast; these figures are what would show it. Knows neither who answered nor how long it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Answers:
    """One run over the whole load."""

    wall_s: float  # first send to last answer
    token_ids: tuple[tuple[int, ...], ...]  # by request, prompts not included

    @property
    def tokens_per_s(self) -> float:
        return sum(len(ids) for ids in self.token_ids) / self.wall_s


@dataclass(frozen=True, slots=True)
class Judgement:
    """A peer's opinion of answers: its own logits after the same tokens before.

    Two runs in bfloat16 round differently, and once they have chosen differently their answers go
    apart for good; token by token they can be compared to the end.
    """

    chosen_share: float  # tokens that are the peer's own first choice
    worst_gap: float  # largest distance below its best logit, in shares of the logits' range
    mean_gap: float  # the same over all tokens; its own choices count as 0


def equal_until_divergence(left: Tokens, right: Tokens) -> float:
    """Share of all tokens that come before the first difference of their two answers."""
    equal = 0
    for one, other in zip(left, right, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            if ours != theirs:
                break
            equal += 1
    return equal / sum(len(ids) for ids in left)


def differing_share(left: Tokens, right: Tokens) -> float:
    """Share of places at which two answers hold different tokens."""
    pairs = [
        (ours, theirs)
        for one, other in zip(left, right, strict=True)
        for ours, theirs in zip(one, other, strict=True)
    ]
    return sum(ours != theirs for ours, theirs in pairs) / len(pairs)
