"""The two loops over random lives: the same tokens, the same last words, in the same order.

A life is its seed's: scarce memory, adapters that come late or not at all, wishes that make a
step plain, stops, cancels, deadlines, logits that are not finite. The fake runner computes as late
as it is waited for. The real runner lives such lives in tests/server/test_fuzz.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from lorry.adapters.key import AdapterCard
from lorry.server.errors import GivenUp, Overloaded
from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.scheduling.policies import FCFS, SLORA, Policy
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Cancel, Forget, Stop, Submit
from lorry.tests.engine_bench import NO_CACHE, Bench, make_bench, submit
from lorry.tests.fakes import FakeRunner, fake_answer, make_card

WISHES = (
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(logprobs=1),
    SamplingParams(prompt_logprobs=0),
)
LOUD_SHARE = 29  # of contexts whose logits are not finite, one in so many


class LoudRunner(FakeRunner):
    """Of some contexts that end in an adapter's row it has no finite logits."""

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        found = super().run(rows)
        loud = {
            row.row
            for row in rows
            if row.adapter_slot >= 0 and found.tokens.get(row.row, 1) % LOUD_SHARE == 0
        }
        return StepResult(
            {row: token for row, token in found.tokens.items() if row not in loud},
            tuple(sorted(loud)),
            logprobs={row: told for row, told in found.logprobs.items() if row not in loud},
            told=tuple(told for told in found.told if told.row not in loud),
        )


@dataclass
class Life:
    """What happens from outside, drawn beforehand: the same for either loop."""

    seed: int
    calm: bool = False  # room for all, and nobody disturbs anybody
    policy: Policy = FCFS
    bench_settings: dict[str, Any] = field(default_factory=dict[str, Any])
    acts: list[list[Any]] = field(default_factory=list[list[Any]])  # commands, a list a step
    cards: dict[int, AdapterCard | None] = field(default_factory=dict[int, AdapterCard | None])
    submits: dict[int, Submit] = field(default_factory=dict[int, Submit])
    disturbed: set[int] = field(default_factory=set[int])  # cancelled, stopped or hurried
    forgotten: list[AdapterCard] = field(default_factory=list[AdapterCard])
    fail_share: float = 0.0  # of loads

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        num_requests = rng.choice([4, 10, 20])
        max_running = rng.choice([1, 2, 4, 8])
        self.bench_settings = {
            "num_pages": 400 if self.calm else rng.choice([9, 12, 18]),
            "max_running": max_running,
            "max_waiting": 100 if self.calm else rng.choice([1, 100, 100, 100]),
            "max_step_tokens": rng.choice([max_running, max_running + 3, 64]),
            "max_prompt_logits": rng.choice([1, 256]),
            "instant": rng.random() < 0.5,
        }
        self.fail_share = 0.0 if self.calm else rng.choice([0.0, 0.0, 0.2])
        names = {name: make_card(name, num_pages=rng.choice([1, 2, 3])) for name in "abcd"}
        wish_share = rng.choice([0.0, 0.0, 0.3])
        unrest = 0.0 if self.calm else rng.choice([0.0, 0.1, 0.3])
        while len(self.submits) < num_requests:
            commands: list[Any] = []
            for _ in range(rng.choice([0, 1, 1, 4])):
                commands.append(self._draw(rng, names, wish_share, unrest))
            if self.submits and rng.random() < unrest:
                request_id = rng.randrange(len(self.submits))
                commands.append(rng.choice([Cancel, Stop])(request_id))
                self.disturbed.add(request_id)
            if rng.random() < unrest / 2:
                name = rng.choice("abcd")
                self._forget(names[name], commands)
                version = names[name].key.version + 1
                names[name] = make_card(name, num_pages=rng.choice([1, 3]), version=version)
            self.acts.append(commands)
        self.acts += [[]] * rng.randrange(20)
        last: list[Any] = []
        for card in names.values():
            self._forget(card, last)
        self.acts.append(last)

    def _draw(
        self, rng: random.Random, names: dict[str, AdapterCard], wish_share: float, unrest: float
    ) -> Submit:
        request_id, prompt = len(self.submits), tuple(range(rng.choice([1, 2, 3, 7, 13])))
        card = names[rng.choice("aabcd")] if rng.random() < 0.6 else None
        answer = fake_answer(prompt, 12, card)
        hurried = rng.random() < unrest / 2
        self.cards[request_id] = card
        self.submits[request_id] = submit(
            request_id,
            card,
            prompt_ids=prompt,
            max_new_tokens=rng.choice([1, 2, 3, 9, 20, 20]),
            sampling=rng.choice(WISHES) if rng.random() < wish_share else SamplingParams(),
            stop_ids=frozenset({rng.choice(answer)} if rng.random() < 0.4 else ()),
            timeout_s=rng.choice([0.0, 0.02, 0.1]) if hurried else float("inf"),
            # Of its own draw, so that a life is the same whatever the policy.
            ttft_s=random.Random(f"{self.seed} {request_id}").choice([0.05, 0.3, 60.0]),
        )
        if hurried:
            self.disturbed.add(request_id)
        return self.submits[request_id]

    def _forget(self, card: AdapterCard, commands: list[Any]) -> None:
        self.forgotten.append(card)
        commands.append(Forget(card.key))

    def live(self, *, overlaps: bool) -> Bench:
        """Steps through it, then until nobody is left; loads come in at their own pace."""
        bench = make_bench(
            overlaps=overlaps,
            runner_kind=LoudRunner,
            policy=self.policy,
            **self.bench_settings,
        )
        pace = random.Random(self.seed + 1)
        fate = {n: random.Random(f"{self.seed} {n}").random() for n in range(400)}
        idle, steps = False, iter(self.acts)
        commands: list[Any] | None = []
        while commands is not None or not idle or bench.link.orders:
            commands = next(steps, None)
            bench.tell(*(commands or ()))
            idle = bench.step() == float("inf")
            for load_id in list(bench.link.orders):
                if pace.random() < 0.4:
                    fails = fate[load_id] < self.fail_share
                    (bench.link.fail if fails else bench.link.finish)(load_id)
                    idle = False
        return bench


def expect_truth(life: Life, bench: Bench) -> None:
    """What was said is true, whole, and nothing of it is kept."""
    for request_id, asked in life.submits.items():
        truth = fake_answer(asked.prompt_ids, asked.max_new_tokens, life.cards[request_id])
        made = bench.tokens[request_id]
        assert made == truth[: len(made)], f"request {request_id}"
        assert not set(made[:-1]) & asked.stop_ids, f"request {request_id} runs on"
        assert request_id in bench.ended or request_id in life.disturbed
    assert bench.num_available == bench.pool.num_pages
    assert not bench.runner.attached and not bench.runner.pages.flights
    assert Counter(bench.released) == Counter(card.key.name for card in life.forgotten)
    stats = bench.engine.stats(pages=False)
    assert stats.num_running == stats.num_waiting == 0


def same_for_both(life: Life, plain: Bench, other: Bench) -> int:
    """How many requests heard the same; those that time decides about are left out."""
    num_same = 0
    for request_id in life.submits.keys() - life.disturbed:
        heard = plain.heard[request_id], other.heard[request_id]
        refused = any(isinstance(b.ended[request_id], Overloaded) for b in (plain, other))
        # Which load fails is told by its number, and the loops may load in another order.
        if refused or (life.fail_share and life.cards[request_id]):
            continue
        assert heard[0] == heard[1], f"request {request_id}: {life.submits[request_id]}"
        num_same += 1
    return num_same


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_both_loops_say_the_same(first: int):
    """A wrong, lost or doubled token, an event after the end, a page kept or given away too early,
    a request that sleeps for ever: in some order of events nobody thought of."""
    sums: Counter[str] = Counter()
    for seed in range(first, first + 50):
        life = Life(seed)
        try:
            plain, other = life.live(overlaps=False), life.live(overlaps=True)
            expect_truth(life, plain)
            expect_truth(life, other)
            sums["same"] += same_for_both(life, plain, other)
        except Exception as error:
            error.add_note(f"seed {seed}: {life.bench_settings}")
            raise
        counters = other.engine.counters
        sums["preemptions"] += counters.preemptions
        sums["evictions"] += counters.adapter_evictions
        sums["launches"] += len(other.runner.num_up)
        sums["overlapped"] += sum(other.runner.num_up)
    print(f"seeds {first} to {first + 49}: {dict(sums)}")
    # Lives in which nothing was scarce would pass with any loop.
    assert sums["same"] > 150 and sums["preemptions"] > 5 and sums["evictions"] > 20
    assert sums["launches"] / 2 < sums["overlapped"] < sums["launches"]


def test_giving_up_takes_nothing_from_under_a_step():
    """Whoever is given up while a step is on its way would leave it pages that are gone."""
    num_given_up = num_whole = 0
    for seed in range(2000, 2020):
        life = Life(seed, policy=SLORA)
        plain, other = life.live(overlaps=False), life.live(overlaps=True)
        for bench in (plain, other):
            expect_truth(life, bench)
            given_up = [n for n, end in bench.ended.items() if isinstance(end, GivenUp)]
            assert not any(bench.tokens[request_id] for request_id in given_up)
            num_given_up += len(given_up)
        num_whole += same_for_both(life, plain, other)
    assert num_given_up > 30 and num_whole > 30


def test_both_loops_count_the_same():
    """A token counted twice, or one that was computed in vain counted at all."""
    num_vain = 0
    for seed in range(1000, 1030):
        life = Life(seed, calm=True)
        # A prompt that comes while another's is on its way finds less of it.
        life.bench_settings["memory"] = NO_CACHE
        plain, other = life.live(overlaps=False), life.live(overlaps=True)
        num_vain += len(other.runner.steps) - len(plain.runner.steps)
        for name in ("tokens_prefill", "tokens_decode", "requests_finished", "requests_failed"):
            counted = [getattr(bench.engine.counters, name) for bench in (plain, other)]
            assert counted[0] == counted[1], f"seed {seed}: {name}"
    assert num_vain > 10
