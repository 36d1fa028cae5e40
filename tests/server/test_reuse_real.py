"""The same requests with the prefix cache and without: the same tokens from the real runner.

Pages shared, evicted, kept after a preemption, and of an adapter that is replaced in between. Every
answer is PEFT's as well, so that a token which differs between the two has to be a tie.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lorry.adapters.host_tier import HostTier
from lorry.bench.fuzz_engine import StepClock, WatchedRunner, make_engine, make_runner
from lorry.bench.fuzz_link import PacedLink
from lorry.bench.fuzz_records import Setting
from lorry.bench.fuzz_world import BASE, FuzzWorld, Question
from lorry.server.config import MemoryConfig
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Forget, MemoryStats, Progress
from lorry.server.seam_ends import LocalEnd
from lorry.tests.engine_bench import submit

pytestmark = pytest.mark.slow

MOST_STEPS = 2000
LONG = (9, 12, 11, 13)  # prompts that begin alike: 90, 60, 70 and 95 tokens
SHORT = (3, 4, 5, 14)  # 15, 16, 17 and 17: their answers outgrow the pool together
GREEDY, WARM = SamplingParams(), SamplingParams(temperature=0.8, seed=7)
SETTING = replace(
    Setting.draw(random.Random(0)),
    # The four prompts take 20 pages and their answers 8, were nothing shared.
    num_pages=16,
    max_running=4,
    max_waiting=100,
    max_step_tokens=64,
    max_slots=8,
    host_bytes=1 << 20,
    max_polls=2,
    fail_share=0.0,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzWorld]:
    made = FuzzWorld(tmp_path_factory.mktemp("reuse"))
    yield made
    made.close()


class Play:
    """One engine, and rounds of requests."""

    def __init__(self, world: FuzzWorld, *, cached: bool, overlaps: bool) -> None:
        self.world, self.end, self.clock = world, LocalEnd(), StepClock()
        setting = replace(SETTING, memory=MemoryConfig(prefix_cache=cached))
        runner = make_runner(world, setting)
        runner.poison(range(setting.num_pages))
        host_tier = HostTier(setting.host_bytes, like=runner.pool_PE)
        self.link = PacedLink(
            host_tier, runner.pool_PE, random.Random(1), max_polls=2, fail_share=0.0
        )
        self.engine = make_engine(
            world,
            setting,
            end=self.end,
            runner=WatchedRunner(runner, random.Random(2)),
            link=self.link,
            host_tier=host_tier,
            clock=self.clock,
            overlaps=overlaps,
        )
        self.tokens: list[list[int]] = []
        self.questions: list[Question] = []

    def round(
        self,
        content: str,
        version: int,
        *,
        prompts: tuple[int, ...] = LONG,
        sampling: SamplingParams = GREEDY,
        new: int = 12,
    ) -> None:
        """All at once, by one adapter under one name; a version above 0 is deleted afterwards."""
        card = self.world.cards[content] if content != BASE else None
        card = card and replace(card, key=replace(card.key, name="served", version=version))
        first = len(self.tokens)
        for prompt in prompts:
            self.questions.append(Question(content, prompt, sampling))
            ids = self.world.prompts[prompt]
            request_id = len(self.tokens)
            self.tokens.append([])
            self.end.commands.put(
                submit(request_id, card, prompt_ids=ids, max_new_tokens=new, sampling=sampling)
            )
        for _ in range(MOST_STEPS):
            self.engine.step()
            self.clock.time_s += 0.01
            while not self.end.reports.empty():
                for event in self.end.reports.get().events:
                    if isinstance(event, Progress):
                        self.tokens[event.request_id] += event.token_ids
            if all(len(tokens) == new for tokens in self.tokens[first:]):
                break
        assert all(len(tokens) == new for tokens in self.tokens[first:]), "no whole answers"
        if card is not None and version:
            self.end.commands.put(Forget(card.key))

    def memory(self) -> MemoryStats:
        return self.engine.stats(pages=False).memory


def play(world: FuzzWorld, *, cached: bool, overlaps: bool) -> Play:
    """Twice the same, others in between, new content under the old name, and the first again."""
    game = Play(world, cached=cached, overlaps=overlaps)
    try:
        game.round(BASE, 0, sampling=WARM)
        game.round("r8-rslora", 1)
        game.round("r12-mlp", 2)
        game.round(BASE, 0, prompts=SHORT, new=56)
        game.round("r12-mlp", 3)
        game.round(BASE, 0, sampling=WARM)
    finally:
        game.link.close()
    return game


@pytest.fixture(scope="module")
def without(world: FuzzWorld) -> Play:
    return play(world, cached=False, overlaps=False)


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])
def test_tokens_are_the_same_with_the_prefix_cache_and_without(
    world: FuzzWorld, without: Play, overlaps: bool
):
    """A page met by the wrong request, one written after it was shared, or one of the adapter that
    had the name before."""
    with_cache = play(world, cached=True, overlaps=overlaps)
    ties = 0
    for game in (with_cache, without):
        pairs = zip(game.questions, game.tokens, strict=True)
        ties += sum(world.judge(question, tokens) for question, tokens in pairs)
        counters = game.engine.counters
        assert counters.preemptions > 0 and counters.adapter_loads > 2
    assert ties or with_cache.tokens == without.tokens
    assert ties <= 1
    memory = with_cache.memory()
    assert memory.prefix_hit_tokens > 200 and memory.prefix_evictions > 20
    assert memory.preempted_tokens_kept > 0
    assert without.memory().prefix_hit_tokens == 0
