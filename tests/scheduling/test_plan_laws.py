"""Laws of the planner over whole lives: random requests in worlds too small for them.

Each step of `World` also checks budgets, residency, eviction and page counts (its `_check`).
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.records import Ending, Request
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.life_builders import MAX_STEPS, live, make_world, random_requests
from lorry.tests.scheduling_builders import make_limits, make_request
from lorry.tests.world_builders import World


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_everyone_is_served(seed):
    """A request would starve, or two would take each other's pages for ever."""
    world = live(seed)
    assert len(world.endings) == 24
    assert set(world.endings.values()) == {Ending.LENGTH}
    for request in world.asked.values():
        wants = request.sampling.prompt_logprobs >= 0
        places = list(range(len(request.prompt_ids) - 1)) if wants else []
        assert world.told[request.request_id] == places, "each place of its prompt once, in order"
    assert world.pool.num_free == world.num_pages - sum(
        seen.num_pages for seen in world.adapters.values()
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_long_life_is_served_too(seed):
    """Some orders of events need many requests: a plan once evicted an adapter and loaded it
    again in the same breath, which forty short lives had not shown."""
    world = live(seed, count=90)
    assert world.endings == dict.fromkeys(range(90), Ending.LENGTH)
    for plan in world.plans:
        assert not {load.adapter_id for load in plan.loads} & set(plan.evictions)
        assert not {run.row for run in plan.runs} & {*plan.preemptions, *plan.expired}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_everyone_is_served_or_expired(seed):
    """A request whose client has gone would hold pages, or end without an answer."""
    world = live(seed, deadlines=True)
    assert set(world.endings) == set(range(24))
    assert set(world.endings.values()) <= {Ending.LENGTH, Ending.EXPIRED}


@pytest.mark.parametrize("seed", range(4))
def test_the_same_seed_gives_the_same_plans(seed):
    """An order of a set or a dict would leak into plans: nothing could be replayed."""
    assert live(seed, deadlines=True).plans == live(seed, deadlines=True).plans


def test_answers_do_not_depend_on_the_room():
    """Preemption, eviction or chunking would change what a request says."""
    small, large = live(5), make_world(5, num_requests=24, num_pages=4000)
    large.limits, large.num_slots = make_limits(max_running=5, max_step_tokens=4000), 9
    for request in random_requests(7, 24, small.num_pages):
        large.submit(request)
    large.run(MAX_STEPS)
    assert large.count("preemptions") == large.count("evictions") == 0
    assert small.answers == large.answers


def test_scarcity_forces_preemption_eviction_and_chunks():
    """The laws above would hold because nothing ever went wrong."""
    worlds = [live(seed) for seed in range(24)]
    assert sum(world.count("preemptions") for world in worlds) > 10
    assert sum(world.count("evictions") for world in worlds) > 50
    chunked = [
        run
        for world in worlds
        for plan in world.plans
        for run in plan.runs
        if run.start > 0 and run.num_tokens > 1
    ]
    assert len(chunked) > 50


@settings(max_examples=75, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_the_oldest_running_row_gets_on_at_every_step(seed):
    """Two rows would preempt each other in turn; or an old one wait for new ones.

    It may pause while loads under way hold the pages it lacks, or while decoding rows fill the
    step; and it gives way to an older one that waits at the barred door.
    """
    world = make_world(seed, num_requests=16)
    for request in random_requests(seed, 16, world.num_pages):
        world.submit(request)
    for _ in range(MAX_STEPS):
        running = world.state.running_rows()
        if not running and not world.state.num_waiting:
            return
        waiting = world.state.line.rows().tolist()
        missing = missing_pages(world, running[0]) if running else 0
        plan = world.step()
        if not running or running[0] in {run.row for run in plan.runs}:
            continue
        oldest = running[0]
        if oldest in plan.preemptions:
            assert waiting and world.state.age(waiting[0]) < world.state.age(oldest)
        elif sum(run.num_tokens for run in plan.runs) == world.limits.max_step_tokens:
            assert all(run.num_tokens == 1 for run in plan.runs), "a newer prompt went before"
        else:
            assert missing > 0, "there was room, or could have been made"
    raise AssertionError("not done")


def missing_pages(world: World, row: int) -> int:
    """What one more token of this row lacks if everyone else went who may: loads may not."""
    state = world.state
    held = int(state.num_pages[row])
    needed = -(-(int(state.num_computed[row]) + 1) // world.tokens_per_page) - held
    loading = sum(
        seen.num_pages
        for adapter_id, seen in world.adapters.items()
        if not seen.resident and world.arrives_s[adapter_id] > world.now_s
    )
    own = int(state.adapter_pages[row])
    return needed - (world.num_pages - loading - own - held)


def stream(
    world: World, large: Request, *, max_steps: int, prompt_logprobs: int = -1
) -> list[float]:
    """A large request among an endless stream of small ones: when others passed it.

    Not counted: passing it while its adapter is on its way, which is no misfit.
    """
    world.submit(make_request(0, num_prompt=4, max_new=60))
    while world.now_s < 24.0:
        world.step()
    row = world.submit(large)
    passed_s: list[float] = []
    for number in range(max_steps):
        if world.state.can_add():
            # Of different lengths, so that they do not all end in the same step.
            max_new = 12 + number * 5 % 17
            world.submit(
                make_request(
                    2 + number,
                    max_new=max_new,
                    arrival_s=world.now_s,
                    prompt_logprobs=prompt_logprobs,
                )
            )
        waiting = set(world.state.line.rows().tolist())
        now_s = world.now_s
        newcomers = [run.row for run in world.step().runs if run.row in waiting]
        if row in newcomers:
            return passed_s
        if large.adapter_id not in world.adapters:
            passed_s += [now_s for _ in newcomers]
    raise AssertionError("overtaken for ever")


LARGE = {
    "prompt": make_request(1, num_prompt=80, max_new=8),
    "adapter": make_request(1, num_prompt=8, max_new=8, adapter_id=3, adapter_pages=20),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_misfit_neither_blocks_nor_starves(kind):
    """The head of the line would idle the server, or be passed for ever by smaller ones."""
    world = World(SchedulerState(8, 64), make_limits(max_bypass_s=15.0))
    passed_s = stream(world, LARGE[kind], max_steps=400)
    assert passed_s, "smaller ones pass while it does not fit"
    assert max(passed_s) - min(passed_s) <= 15.0


@pytest.mark.parametrize("kind", LARGE)
def test_without_the_barred_door_a_misfit_starves(kind):
    """The test above would hold for a planner that never lets anyone pass for long anyway."""
    world = World(SchedulerState(8, 64), make_limits(max_bypass_s=1e9))
    with pytest.raises(AssertionError, match="overtaken for ever"):
        stream(world, LARGE[kind], max_steps=400)


@pytest.mark.parametrize("prompt_logprobs", [-1, 0])
def test_a_misfit_whose_prompt_is_told_does_not_starve(prompt_logprobs):
    """Waiting for logits bars no door: a row that lacks room as well would be passed for ever,
    even by those who take the logits it waits for."""
    limits = make_limits(max_bypass_s=15.0, max_prompt_logits=3)
    world = World(SchedulerState(8, 64), limits)
    large = make_request(1, num_prompt=80, max_new=8, prompt_logprobs=0)
    passed_s = stream(world, large, max_steps=400, prompt_logprobs=prompt_logprobs)
    assert passed_s, "smaller ones pass while it does not fit"
    assert max(passed_s) - min(passed_s) <= 15.0 + (prompt_logprobs == 0)


@pytest.mark.parametrize(("count", "num_prompt"), [(20, 40), (150, 4)])
def test_prompts_that_are_told_hold_up_nobody_else(count, num_prompt):
    """More log-probabilities of prompts than steps have room for: those who wait for them would
    close an idle server to everyone else, or wait while nobody uses them."""
    limits = make_limits(max_running=16, max_prompt_logits=4)
    world = World(SchedulerState(16, 256), limits, num_pages=1000)
    for number in range(count):
        world.submit(make_request(number, num_prompt=num_prompt, prompt_logprobs=0))
    to_tell, told, served = count * (num_prompt - 1), 0, 0
    while told < to_tell:
        world.submit(make_request(count + served, arrival_s=world.now_s))
        world.step()
        served += 1
        before, told = told, sum(map(len, world.told.values()))
        assert told == min(before + 4, to_tell), "the logits of a step"
        late = range(count, count + served - 8)
        assert world.endings.keys() >= set(late), "four tokens take four steps"
    world.run(16)
    assert [number for number in world.endings if number < count] == list(range(count))
