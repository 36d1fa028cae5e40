"""Random lives of cold requests over fakes, in both loops: every answer is what it is alone.

Loads open late, land or fail in any order; parts of steps are lost; clients leave, adapters are
deleted and replaced; the pool is so small that whoever runs is preempted and adapters are evicted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.key import AdapterCard
from lorry.server.config import MemoryConfig
from lorry.server.memory.link_records import LoadCancelled, LoadFailed
from lorry.server.scheduling.starts import Way
from lorry.server.seam import Cancel, Finish, Forget
from lorry.tests.cold_engine_builders import ColdEngine, make_cold_engine, make_held
from lorry.tests.engine_bench import submit
from lorry.tests.fakes import fake_answer, make_card

NAMES = ("a", "b", "c", "d")
NUM_REQUESTS, MOST_STEPS = 40, 4000
NUM_PAGES = 20


@dataclass
class Lives:
    """One engine, and what was asked of it."""

    cold: ColdEngine
    rng: random.Random
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 1))
    asked: dict[int, tuple[tuple[int, ...], int, AdapterCard | None]] = field(
        default_factory=dict[int, tuple[tuple[int, ...], int, AdapterCard | None]]
    )
    left: set[int] = field(default_factory=set[int])

    def card(self, name: str) -> AdapterCard:
        """A name of its own for each version: the fake link keeps images by name."""
        return make_card(f"{name}{self.versions[name]}", num_pages=3, weight_bytes=1 << 20)

    def ask(self) -> None:
        request_id, name = len(self.asked) + 1, self.rng.choice((*NAMES, ""))
        prompt = tuple(self.rng.randrange(100) for _ in range(self.rng.randint(1, 14)))
        num_new, card = self.rng.randint(1, 8), self.card(name) if name else None
        if card is not None and self.rng.random() < 0.6:
            self.cold.in_host(card, is_open=self.rng.random() < 0.8)
        self.asked[request_id] = prompt, num_new, card
        self.cold.bench.tell(
            submit(
                request_id,
                card,
                prompt_ids=prompt,
                max_new_tokens=num_new,
                tpot_s=self.rng.choice((0.0001, 0.05, 1.0)),
            )
        )

    def disturb(self) -> None:
        rng, link = self.rng, self.cold.bench.link
        chance = rng.random()
        if chance < 0.05 and self.asked:
            request_id = rng.choice(list(self.asked))
            self.left.add(request_id)
            self.cold.bench.tell(Cancel(request_id))
        elif chance < 0.1:
            name = rng.choice(NAMES)
            gone = self.card(name).key
            self.cold.bench.tell(Forget(gone))
            self.cold.bench.host_tier.held.discard(gone)
            link.images.pop(gone.name, None)
            self.versions[name] += 1
        elif chance < 0.4 and link.orders:
            load_id = rng.choice(list(link.orders))
            if load_id in link.cancelled and rng.random() < 0.8:
                link.orders.pop(load_id)
                link.events.append(LoadFailed(load_id, LoadCancelled("nobody needs it")))
            elif rng.random() < 0.1:
                link.fail(load_id)
            else:
                link.land_layer(load_id)
        elif chance < 0.5 and link.orders:
            load_id, order = rng.choice(list(link.orders.items()))
            image = make_held(order.card)
            self.cold.runner.knows(image, order.card)
            if order.slot not in self.cold.runner.cold:
                link.open(load_id, image)

    def expect_answers(self) -> None:
        for request_id, (prompt, num_new, card) in self.asked.items():
            told, end = self.cold.bench.tokens[request_id], self.cold.bench.ended.get(request_id)
            alone = fake_answer(prompt, num_new, card)
            assert told == alone[: len(told)], f"request {request_id} got others' tokens"
            if isinstance(end, Finish):
                assert told == alone
            else:
                assert isinstance(end, AdapterLoadFailed) or request_id in self.left, end


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("seed", range(3))
def test_random_lives_end_and_every_answer_is_what_it_is_alone(seed: int, overlaps: bool):
    """Tokens of another adapter's slot, a request that never ends, an image that is never let go
    of."""
    rng = random.Random(seed)
    ways = ({Way.STREAM}, {Way.ASSIST}, {Way.STREAM, Way.ASSIST})[seed % 3]
    cold = make_cold_engine(
        *ways,
        overlaps=overlaps,
        num_pages=NUM_PAGES,
        max_running=4,
        max_step_tokens=16,
        memory=MemoryConfig(prefetch=False, prefix_cache=seed % 2 == 0),
    )
    lives = Lives(cold, rng)
    cold.runner.loses = lambda row: rng.random() < 0.15
    for _ in range(MOST_STEPS):
        if len(lives.asked) < NUM_REQUESTS and rng.random() < 0.2:
            lives.ask()
        lives.disturb()
        cold.bench.step()
        done = cold.bench.ended.keys() | lives.left
        if len(lives.asked) == NUM_REQUESTS and lives.asked.keys() <= done:
            break
    else:
        raise AssertionError(f"{sorted(lives.asked.keys() - cold.bench.ended.keys())} never end")
    for load_id in tuple(cold.bench.link.orders):
        cold.bench.link.finish(load_id)
    cold.bench.run_dry()
    lives.expect_answers()
    assert cold.bench.link.held == [] and not cold.runner.cold
    attached = sum(map(len, cold.runner.attached.values()))
    assert cold.bench.num_available + attached == NUM_PAGES
    stats = cold.bench.engine.stats(pages=False).cold
    assert stats.lost_rows > 0 and stats.stream + stats.assist > 0, "nobody started cold"
