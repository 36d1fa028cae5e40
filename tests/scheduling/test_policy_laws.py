"""Laws of `slora` over whole lives; `World` checks each step under any policy."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.early_abort import MARGIN_SHARE
from lorry.server.scheduling.policies import FCFS, SLORA
from lorry.server.scheduling.records import Ending
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.life_builders import live
from lorry.tests.scheduling_builders import make_limits, make_request
from lorry.tests.world_builders import World

TTFTS_S = (3.0, 10.0, 40.0, 200.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_everyone_is_served_given_up_or_expired(seed):
    """Somebody would wait for ever, behind newer ones or behind the door."""
    deadlines = seed % 2 == 1
    world = live(seed, deadlines=deadlines, policy=SLORA, ttfts_s=TTFTS_S)
    assert len(world.endings) == 24
    said = {Ending.LENGTH, Ending.ABORTED} | ({Ending.EXPIRED} if deadlines else set())
    assert set(world.endings.values()) <= said
    for request_id, ending in world.endings.items():
        if ending is Ending.ABORTED:
            assert request_id not in world.answers
        elif ending is Ending.LENGTH:
            assert len(world.answers[request_id]) == world.asked[request_id].max_new_tokens


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_without_overload_it_is_fcfs(seed):
    """A baseline that differs where there is nothing to decide measures something else."""
    plain = live(seed, ttfts_s=(1e6,))
    # Nobody waits half of this: it is twice the whole life.
    same = live(seed, policy=SLORA, ttfts_s=(2 * plain.now_s,))
    assert same.plans == plain.plans


def test_the_lives_above_know_overload():
    """The laws would hold because nobody was ever given up, and no line turned round."""
    worlds = [live(seed, policy=SLORA, ttfts_s=TTFTS_S) for seed in range(8)]
    endings = [ending for world in worlds for ending in world.endings.values()]
    assert 30 < endings.count(Ending.ABORTED) < 130
    assert sum(plan.newest_first for world in worlds for plan in world.plans) > 30


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_time_alone_changes_nothing_before_the_told_instant(seed):
    """Steps leapt over would not have been those planned one by one."""
    world = World(SchedulerState(3, 64, policy=SLORA), make_limits(max_running=3))
    rng, told = np.random.default_rng(seed), 0
    for number in range(30):
        if rng.random() < 0.7:
            request = make_request(
                number, max_new=int(rng.integers(1, 9)), ttft_s=float(rng.integers(2, 30))
            )
            world.submit(replace(request, arrival_s=world.now_s))
        world.step()
        now_s, state = world.now_s, world.state
        change_s = SLORA.next_change_s(state, now_s)
        if math.isinf(change_s):
            continue
        told += 1
        for same_s in (now_s + (change_s - now_s) / 3, np.nextafter(change_s, now_s)):
            assert words(state, same_s) == words(state, now_s)
        assert words(state, change_s) != words(state, now_s)
    assert told >= 3


def words(state, now_s):
    return SLORA.gives_up(state, now_s).tolist(), SLORA.newest_first(state, now_s)


def overloaded(policy, *, num_steps: int = 150) -> World:
    """Two requests a step, room for one: after a while nobody is in time under `fcfs`."""
    world = World(SchedulerState(4, 1000, policy=policy), make_limits(max_running=4))
    for number in range(2 * num_steps):
        world.submit(make_request(number, max_new=4, arrival_s=world.now_s, ttft_s=12.0))
        if number % 2:
            world.step()
    world.run(4000)
    return world


def test_under_overload_half_are_served_in_time_and_not_none():
    """The abort would be late, or take the wrong ones: S-LoRA's reason for it."""
    served = {policy.name: attained(overloaded(policy)) for policy in (FCFS, SLORA)}
    assert served["fcfs"] < 0.1
    assert 0.48 < served["slora"] <= 0.55, "half of them is all there is room for"


def attained(world: World) -> float:
    """Share of requests whose first token came within 12 s; a step is a second."""
    return sum(first_s <= 12.0 for first_s in world.first_s.values()) / len(world.asked)


def test_nobody_waits_past_the_instant_it_is_given_up():
    """A request that is in nobody's way would be forgotten in the line."""
    world = World(SchedulerState(2, 500, policy=SLORA), make_limits(max_running=2))
    for number in range(120):
        world.submit(make_request(number, arrival_s=world.now_s, ttft_s=6.0 + number % 7))
        world.step()
        state = world.state
        rows = state.line.rows()
        rows = rows[~state.has_begun(rows)]
        ages_s = world.plans[-1].now_s - state.arrival_s[rows]
        assert (ages_s < (1 - MARGIN_SHARE) * state.ttft_s[rows]).all()


def test_one_who_had_a_token_comes_back_although_newer_ones_go_first():
    """Overload without end: a preempted answer would stand behind everyone who is new."""
    world = World(SchedulerState(4, 1000, policy=SLORA), make_limits(max_running=4))
    row = world.submit(make_request(0, num_prompt=60, max_new=20, ttft_s=100.0))
    while not world.answers:
        world.step()
    for number in range(1, 250):
        world.submit(make_request(number, max_new=9, arrival_s=world.now_s, ttft_s=12.0))
        world.submit(make_request(1000 + number, max_new=9, arrival_s=world.now_s, ttft_s=12.0))
        if number == 30:
            world.preempt(row)
        world.step()
    turned = [plan for plan in world.plans[30:] if plan.newest_first]
    assert len(turned) > 100
    assert world.endings[0] is Ending.LENGTH
