"""A thousand requests that leave, expire or lose their adapter between any two steps.

The engine in this process over fakes, a pool too small for it all, loads that land or fail when
they like; `bench/storm.py` does the same to real processes from outside.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.key import AdapterCard
from lorry.server.errors import DeadlineExceeded
from lorry.server.seam import Cancel, Finish, Forget, Submit
from lorry.tests.engine_bench import Bench, make_bench, submit
from lorry.tests.fakes import fake_answer, make_card

NUM_SEEDS, NUM_REQUESTS = 10, 100
SIZES = {"a": 2, "b": 5, "c": 3, "d": 7, "e": 1}  # pages of each adapter


class Storm:
    """One engine's worst hour, by its seed alone."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench: Bench = make_bench(
            num_pages=24, max_running=8, max_step_tokens=12, instant=False
        )
        self.cards = {name: make_card(name, num_pages=pages) for name, pages in SIZES.items()}
        self.submits: dict[int, Submit] = {}
        self.left: set[int] = set()  # cancelled by their clients
        self.outcomes: Counter[str] = Counter()

    def play(self) -> None:
        while len(self.submits) < NUM_REQUESTS:
            for _ in range(self.rng.randrange(3)):
                self.arrive()
            self.misfortune()
            self.bench.clock.advance(self.rng.random() * 0.05)
            self.bench.step(self.rng.randrange(1, 4))
            self.check_so_far()
        self.bench.link.instant = True  # the storm is over
        while self.bench.link.orders:
            self.land()
            self.bench.step()
        self.bench.run_dry()

    def arrive(self) -> None:
        rng, request_id = self.rng, len(self.submits) + 1
        name = rng.choice([*SIZES, None])
        length = rng.randrange(1, 14)
        self.submits[request_id] = submit(
            request_id,
            self.cards[name] if name else None,
            prompt_ids=tuple(rng.randrange(1000) for _ in range(length)),
            max_new_tokens=rng.randrange(1, 40),
            timeout_s=rng.choice([0.0, 0.02, 0.2, 1.0, 5.0, float("inf")]),
        )
        self.bench.tell(self.submits[request_id])

    def misfortune(self) -> None:
        match self.rng.randrange(6):
            case 0 | 1:  # also one that has ended, or was never there
                victim = self.rng.randrange(1, len(self.submits) + 3)
                self.bench.tell(Cancel(victim))
                self.left.add(victim)
            case 2 if self.submits:
                self.bench.tell(Cancel(len(self.submits)))  # in the same breath as it came
                self.left.add(len(self.submits))
            case 3:  # a new version takes the name; who runs on the old one stays on it
                name = self.rng.choice(list(SIZES))
                old = self.cards[name]
                self.bench.tell(Forget(old.key))
                self.cards[name] = make_card(
                    name, num_pages=SIZES[name], version=old.key.version + 1
                )
            case _:
                self.land()

    def land(self) -> None:
        """Some load goes on by a layer, ends, or fails."""
        under_way = list(self.bench.link.orders)
        if not under_way:
            return
        load_id = self.rng.choice(under_way)
        match self.rng.randrange(5):
            case 0:
                self.bench.link.fail(load_id)
            case 1 | 2:
                self.bench.link.land_layer(load_id)
            case _:
                self.bench.link.finish(load_id)

    def check_so_far(self) -> None:
        stats = self.bench.engine.stats(pages=False)
        held = stats.pages_kv + stats.pages_adapter + stats.memory.pages_cached
        assert stats.pages_free + held == stats.pages_total
        num_users = sum(resident.num_users for resident in stats.residents)
        assert num_users <= stats.num_running + stats.num_waiting

    def check_answers(self) -> None:
        for request_id, asked in self.submits.items():
            right = fake_answer(asked.prompt_ids, asked.max_new_tokens, asked.adapter)
            got, ended = self.bench.tokens[request_id], self.bench.ended.get(request_id)
            assert got == right[: len(got)], f"request {request_id}"
            if isinstance(ended, Finish):
                assert got == right, f"request {request_id} is not whole"
            elif isinstance(ended, DeadlineExceeded):
                assert asked.timeout_s < 10
            elif ended is None:
                assert request_id in self.left, f"request {request_id} got no answer"
            else:
                assert isinstance(ended, AdapterLoadFailed), ended
            self.outcomes[type(ended).__name__] += 1

    def check_empty(self, cards: list[AdapterCard]) -> None:
        stats = self.bench.engine.stats(pages=True)
        assert stats.num_running == stats.num_waiting == stats.pages_kv == 0
        assert not any(resident.num_users for resident in stats.residents)
        self.bench.tell(*(Forget(card.key) for card in cards))
        self.bench.run_dry()
        assert self.bench.num_available == self.bench.pool.num_pages
        assert not self.bench.runner.attached
        assert self.bench.engine.stats(pages=True).residents == ()


@pytest.fixture(scope="module")
def storms() -> list[Storm]:
    played = [Storm(seed) for seed in range(NUM_SEEDS)]
    for storm in played:
        storm.play()
        storm.check_answers()
    return played


def test_nothing_is_left_of_a_thousand_requests(storms: list[Storm]):
    """Pages, rows or users of requests that left between two steps."""
    for storm in storms:
        storm.check_empty(list(storm.cards.values()))


def test_the_storms_were_hard(storms: list[Storm]):
    """Storms in which nobody left, expired, lost an adapter or had to give way prove nothing."""
    outcomes = sum((storm.outcomes for storm in storms), Counter())
    assert sum(outcomes.values()) >= NUM_SEEDS * NUM_REQUESTS
    for name in ("Finish", "NoneType", "DeadlineExceeded", "AdapterLoadFailed"):
        assert outcomes[name] >= 50, outcomes
    counters = [storm.bench.engine.counters for storm in storms]
    assert sum(one.preemptions for one in counters) > 20
    assert sum(one.adapter_evictions for one in counters) > 50
