"""The planner's laws again, where rows begin beside their loads and pause for them.

Each step of `ColdWorld` checks what `World` does, and that whoever runs beside a load may: see
its `_check_cold`. Forecasts are wrong, helpers fail in the middle, loads fail.
"""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.records import Ending
from lorry.tests.cold_life_builders import ColdWorld, cold_life, cold_life_with_memory


@pytest.fixture(scope="module")
def worlds() -> list[ColdWorld]:
    return [cold_life(seed) for seed in range(24)]


def check_end(world: ColdWorld, *, expires: bool = False) -> None:
    assert set(world.endings) == set(world.asked)
    said = {Ending.LENGTH, Ending.BROKEN} | ({Ending.EXPIRED} if expires else set())
    assert set(world.endings.values()) <= said
    for request_id, answer in world.answers.items():
        first = 100 + request_id * 7 + len(world.asked[request_id].prompt_ids)
        assert answer == list(range(first, first + len(answer)))
    held = sum(seen.num_pages for seen in world.adapters.values())
    cached = world.prefixes.stats().num_pages
    assert world.pool.num_free == world.num_pages - held - cached, "no page is left behind"
    assert len(world.state.starts) == 0


def test_everyone_comes_to_an_end(worlds):
    """Two rows would wait for each other's pages, one of them paused; or a paused one for ever."""
    for world in worlds:
        check_end(world)


def test_everyone_comes_to_an_end_behind_caps_and_cached_prompts():
    """A tenant would begin beside a load that its cap has no room for; or behind pages that went
    for its adapter."""
    worlds = [cold_life_with_memory(seed, deadlines=seed % 3 == 0) for seed in range(12)]
    for seed, world in enumerate(worlds):
        check_end(world, expires=seed % 3 == 0)
    begun = sum((world.seen for world in worlds), Counter[str]())
    assert begun["ASSIST True"] + begun["STREAM True"] > 12 and begun["paused"] > 8
    assert sum(world.count("hits") for world in worlds) > 8


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(100, 10**6))
def test_others_come_to_an_end_too(seed):
    """As above: the fixed lives are few."""
    check_end(cold_life(seed))


@pytest.mark.parametrize("seed", [3, 11])
def test_the_same_seed_gives_the_same_plans(seed, worlds):
    """An order of a set or a dict would leak into plans: nothing could be replayed."""
    assert cold_life(seed).plans == worlds[seed].plans


def test_the_lives_above_know_all_of_it(worlds):
    """The laws would hold because nobody ever began beside a load."""
    seen = sum((world.seen for world in worlds), Counter[str]())
    assert seen["ASSIST True"] > 30 and seen["STREAM True"] > 8 and not seen["WAIT True"]
    assert seen["STREAM False"] > 50 and seen["WAIT False"] > 50
    assert seen["paused"] > 20 and seen["lost"] > 8
    assert sum(world.count("preemptions") for world in worlds) > 2
    endings = Counter(ending for world in worlds for ending in world.endings.values())
    assert endings[Ending.BROKEN] > 5
