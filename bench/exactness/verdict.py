"""Whether what was served equals PEFT's, and whether the run could have shown a difference.

Owns the shares and the conditions that make a run count: adapters that change the base's answers,
chunks, evictions, preemptions, mixed steps, slots handed on. Called by the tests and by
`make exact`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .serving import Served, Setting
from .world import BASE, CaseWorld

MIN_CHANGED = 0.3  # of the base's tokens, for each adapter


class Hollow(Exception):
    """The run proves too little; says what did not happen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run that equals PEFT."""

    tokens: int
    ties: int
    least_changed: float  # share of the base's tokens that the weakest adapter changes


def judge(world: CaseWorld, served: Served, setting: Setting) -> Verdict:
    """Compare with PEFT, then ask whether there was anything to compare.

    Raises:
        WrongToken: a token is not PEFT's.
        Hollow: the run was too easy to show anything.
    """
    ties = sum(
        world.count_ties(name, world.prompts[i], answer)
        for (name, i), answer in served.answers.items()
    )
    num_asked = len(world.prompts) * (1 + len(world.cards))
    short = [asked for asked, said in served.answers.items() if len(said) != setting.answer_tokens]
    if short or len(served.answers) != num_asked:
        raise Hollow(f"{world.case.label}: answers of another length than asked: {short}")
    changed = {name: changed_share(world, served, name) for name in world.cards}
    weakest = min(changed, key=lambda name: changed[name])
    facts = {
        f"adapter {weakest} changes {changed[weakest]:.0%} of the tokens": changed[weakest]
        >= MIN_CHANGED,
        "no step mixed two adapters and the base": served.mixed_steps > 0,
        "no prompt was cut into chunks": served.chunks > 0,
        "no adapter was evicted": served.evictions > 0 or not setting.scarce,
        "no slot went to another adapter": served.handed_on > 0 or not setting.as_served,
        "no request was preempted": served.preemptions > 0 or not setting.scarce,
        "no decode step replayed a recording": served.replays > 0 or not setting.records(world),
        "no step was launched before another's end": served.overtakes > 0 or not setting.as_on_gpu,
    }
    for what, holds in facts.items():
        if not holds:
            raise Hollow(f"{world.case.label}: {what} ({setting})")
    return Verdict(
        tokens=sum(map(len, served.answers.values())), ties=ties, least_changed=changed[weakest]
    )


def changed_share(world: CaseWorld, served: Served, adapter: str) -> float:
    """Share of the base's tokens that the adapter's answers do not have at their place."""
    pairs = [
        pair
        for i in range(len(world.prompts))
        for pair in zip(served.answers[adapter, i], served.answers[BASE, i], strict=False)
    ]
    return sum(a != b for a, b in pairs) / max(len(pairs), 1)
