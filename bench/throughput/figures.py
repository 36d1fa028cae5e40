"""What the rows say: ratios beside their targets, and whether the rows did the same work.

Pure: rows and opinions in, records and sentences out. Owns the targets and the limits below
which a run measures nothing. Knows nothing of how a row came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .answers import Judgement

# Adapters that change fewer of the base's tokens than this could as well have been left out.
MIN_DIFFERING = 0.3
# A row that computes the same model picks the peer's own choice but for ties of rounding.
MIN_CHOSEN = 0.9
# An idle server's share of one core; above it, it takes from the peer that is being measured.
MAX_IDLE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Goal:
    """One row over another."""

    over: str  # key of the row that is to be faster
    under: str
    target: float = 0.0  # 0: told, not aimed at
    stretch: float = 0.0  # 0: none

    @property
    def name(self) -> str:
        return f"{self.over}_over_{self.under}"


GOALS = (
    Goal("base", "hf", target=2.5, stretch=3.3),
    Goal("base", "hf_static"),
    Goal("lora", "base", target=0.6, stretch=0.75),
    Goal("lora", "peft", target=3.0),
    Goal("lora", "peft_static"),
)


@dataclass(frozen=True, slots=True)
class SameWork:
    """What was compared; None where no peer was there to compare with."""

    lora_differing: float  # share of places where the adapters' answers leave the base's
    base_equal_hf: float | None  # share of tokens before Lorry's base and hf part
    lora_equal_peft: float | None
    base_by_hf: Judgement | None  # Lorry's base tokens by hf's logits
    lora_by_peft: Judgement | None
    lora_by_base: Judgement | None  # the adapters' tokens by the base's logits


def ratios(tok_s: Mapping[str, float]) -> dict[str, float]:
    """Of the rows that were measured, by goal."""
    return {
        goal.name: tok_s[goal.over] / tok_s[goal.under]
        for goal in GOALS
        if goal.over in tok_s and goal.under in tok_s
    }


def goal_lines(found: Mapping[str, float], *, with_targets: bool) -> list[str]:
    """A sentence for each ratio; targets were set for one kind of machine only."""
    lines: list[str] = []
    for goal in GOALS:
        if goal.name not in found:
            continue
        line = f"{goal.over} is {found[goal.name]:.2f} x {goal.under}"
        if with_targets and goal.target:
            line += f": {_against('target', found[goal.name], goal.target)}"
        if with_targets and goal.stretch:
            line += f", {_against('stretch', found[goal.name], goal.stretch)}"
        lines.append(line)
    return lines


def _against(what: str, value: float, aim: float) -> str:
    if value >= aim:
        return f"{what} {aim:g} reached"
    return f"{what} {aim:g} missed by {aim - value:.2f} ({1 - value / aim:.0%})"


def work_lines(work: SameWork) -> list[str]:
    lines = [f"adapters change {work.lora_differing:.0%} of the base's tokens"]
    if work.base_equal_hf is not None:
        lines.append(f"base and hf agree on {work.base_equal_hf:.0%} of tokens before they part")
    if work.lora_equal_peft is not None:
        lines.append(f"lora and peft agree on {work.lora_equal_peft:.0%} before they part")
    for who, judgement in (
        ("base's tokens by hf's logits", work.base_by_hf),
        ("lora's tokens by peft's logits", work.lora_by_peft),
        ("lora's tokens by the base's logits", work.lora_by_base),
    ):
        if judgement is not None:
            lines.append(
                f"{who}: {judgement.chosen_share:.1%} its own choice, the worst "
                f"{judgement.worst_gap:.2%} of the logits' range below it"
            )
    return lines


def failures(work: SameWork, server_shares: Mapping[str, float]) -> list[str]:
    """Why this run measures nothing; empty when it does."""
    found: list[str] = []
    if work.lora_differing < MIN_DIFFERING:
        found.append(_too_few("the adapters change", work.lora_differing, MIN_DIFFERING))
    if work.lora_by_base is not None and 1 - work.lora_by_base.chosen_share < MIN_DIFFERING:
        share = 1 - work.lora_by_base.chosen_share
        found.append(_too_few("by the base's own logits the adapters change", share, MIN_DIFFERING))
    for who, judgement in (("base", work.base_by_hf), ("lora", work.lora_by_peft)):
        if judgement is not None and judgement.chosen_share < MIN_CHOSEN:
            found.append(_too_few(f"{who}: its peer chooses", judgement.chosen_share, MIN_CHOSEN))
    found += [
        f"the idle server used {share:.0%} of a core while {key} ran; at most {MAX_IDLE_SHARE:.0%}"
        for key, share in server_shares.items()
        if share > MAX_IDLE_SHARE
    ]
    return found


def _too_few(who: str, share: float, limit: float) -> str:
    return f"{who} {share:.1%} of the tokens, and at least {limit:.0%} are needed"
