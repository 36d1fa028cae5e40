"""Both loops with requests that start while their adapter is on its way: what runs, what is lost,
and what is let go of. The tokens are always those of a request that is alone."""

from __future__ import annotations

import pytest

from lorry.server.config import MemoryConfig
from lorry.server.scheduling.starts import Way
from lorry.server.seam import Cancel, Finish, Forget, Shutdown
from lorry.tests.cold_engine_builders import ColdEngine, make_cold_engine
from lorry.tests.engine_bench import PROMPT, submit
from lorry.tests.fakes import fake_answer, make_card

LOOPS = pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])
COLD = pytest.mark.parametrize("way", [Way.STREAM, Way.ASSIST])


def land(cold: ColdEngine, name: str = "a") -> None:
    """The load of this adapter is over."""
    orders = cold.bench.link.orders.values()
    (load_id,) = [order.load_id for order in orders if order.card.key.name == name]
    cold.bench.link.finish(load_id)


def expect_nothing_held(cold: ColdEngine) -> None:
    """Pages and images have come back."""
    assert cold.bench.link.held == []
    assert cold.bench.num_available + sum(map(len, cold.runner.attached.values())) == 32
    assert not cold.runner.cold


@LOOPS
@COLD
def test_a_cold_request_has_its_tokens_before_its_adapter_is_there(way: Way, overlaps: bool):
    """The whole point: it would wait for the load."""
    cold = make_cold_engine(way, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card), submit(2))
    cold.bench.step()
    assert len(cold.bench.tokens[1]) == 1 and cold.bench.link.orders
    assert way in cold.ways_run()
    land(cold)
    cold.bench.run_dry()
    for request_id, of in ((1, card), (2, None)):
        assert cold.bench.tokens[request_id] == fake_answer(PROMPT, 4, of)
    assert cold.ways_run()[-1] is Way.WARM
    finish = cold.bench.ended[1]
    assert isinstance(finish, Finish) and finish.start is not None and finish.start.way is way
    stats = cold.bench.engine.stats(pages=False).cold
    assert (stats.wait, stats.stream, stats.assist) == (0, way is Way.STREAM, way is Way.ASSIST)
    expect_nothing_held(cold)


@LOOPS
def test_who_waits_is_told_as_well(overlaps: bool):
    """A bench could not tell a request that waited from one whose adapter was there."""
    cold = make_cold_engine(Way.WAIT, overlaps=overlaps)
    card = make_card()
    cold.bench.tell(submit(1, card), submit(2))
    cold.bench.step(3)
    land(cold)
    cold.bench.run_dry()
    cold.bench.tell(submit(3, card))
    cold.bench.run_dry()
    starts = [getattr(cold.bench.ended[i], "start", None) for i in (1, 2, 3)]
    assert starts[0] is not None and starts[0].way is Way.WAIT and starts[0].measured_s > 0
    assert starts[1:] == [None, None]
    assert cold.bench.engine.stats(pages=False).cold.wait == 1


@LOOPS
@pytest.mark.parametrize("cached", [False, True])
@COLD
def test_a_lost_row_is_computed_again_and_nothing_of_it_is_kept(
    way: Way, cached: bool, overlaps: bool
):
    """Tokens of the base under an adapter's name; or their KV, met by whoever comes next."""
    memory = MemoryConfig(prefetch=False, prefix_cache=cached)
    cold = make_cold_engine(way, overlaps=overlaps, memory=memory)
    card, long_prompt = make_card(), tuple(range(5, 18))
    cold.in_host(card)
    cold.runner.loses = lambda row: True
    cold.bench.tell(submit(1, card, prompt_ids=long_prompt), submit(2))
    cold.bench.step()
    assert cold.bench.tokens[1] == [] and len(cold.bench.tokens[2]) == 1
    stats = cold.bench.engine.stats(pages=False)
    assert (stats.cold.lost_rows, stats.tokens_prefill_total) == (1, len(PROMPT))
    land(cold)
    cold.bench.run_dry()
    cold.bench.tell(submit(3, card, prompt_ids=long_prompt))
    cold.bench.run_dry()
    for request_id in (1, 3):
        assert cold.bench.tokens[request_id] == fake_answer(long_prompt, 4, card)
    assert cold.bench.tokens[2] == fake_answer(PROMPT, 4)
    finish = cold.bench.ended[1]
    assert isinstance(finish, Finish) and finish.timings.num_preemptions >= 1
    expect_nothing_held(cold)


@LOOPS
def test_a_row_that_was_lost_in_the_middle_goes_on_where_it_was(overlaps: bool):
    """The token sampled last is fed from the device: after a loss it must still be the right one.
    And the answer so far is not told twice."""
    cold = make_cold_engine(Way.ASSIST, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card, max_new_tokens=12, tpot_s=1e-3))
    steps = 0
    while len(cold.bench.tokens[1]) < 3:
        cold.bench.step()
        steps += 1
        assert steps < 50, "a helped row that never goes on"
    cold.runner.loses = lambda row: True
    cold.bench.step(3)
    assert cold.bench.engine.stats(pages=False).cold.lost_rows >= 1
    land(cold)
    cold.bench.run_dry()
    assert cold.bench.tokens[1] == fake_answer(PROMPT, 12, card)
    expect_nothing_held(cold)


@LOOPS
def test_an_image_that_has_left_host_memory_costs_a_step_and_no_more(overlaps: bool):
    """The plan believed that it could be opened at once: rows on a slot that means nothing."""
    cold = make_cold_engine(Way.ASSIST, overlaps=overlaps)
    card = make_card()
    cold.in_host(card, is_open=False)
    cold.bench.tell(submit(1, card), submit(2))
    cold.bench.step()
    stats = cold.bench.engine.stats(pages=False)
    assert (stats.cold.lost_rows, stats.pages_kv) == (1, 1), "the other's page alone"
    cold.bench.step(2)
    assert cold.bench.tokens[1] == [] and cold.bench.tokens[2]
    land(cold)
    cold.bench.run_dry()
    assert cold.bench.tokens[1] == fake_answer(PROMPT, 4, card)
    assert cold.bench.tokens[2] == fake_answer(PROMPT, 4)
    expect_nothing_held(cold)


@LOOPS
def test_what_cannot_be_attached_cold_is_waited_for(overlaps: bool):
    """A bug in one image would end the engine, or be tried again at every step."""
    cold = make_cold_engine(Way.STREAM, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.runner.refuses = True
    cold.bench.tell(submit(1, card))
    cold.bench.step(5)
    assert cold.bench.link.held == [] and cold.bench.tokens[1] == []
    assert len(cold.runner.steps) == 0, "it goes on trying"
    land(cold)
    cold.bench.run_dry()
    assert cold.bench.tokens[1] == fake_answer(PROMPT, 4, card)


@LOOPS
@COLD
def test_a_failed_load_ends_its_requests_and_lets_go(way: Way, overlaps: bool):
    """An image held for ever, a slot that stays attached, or an answer without its adapter."""
    cold = make_cold_engine(way, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card, max_new_tokens=20), submit(2))
    cold.bench.step()
    assert cold.bench.link.held
    (load_id,) = cold.bench.link.orders
    cold.bench.link.fail(load_id)
    cold.bench.run_dry()
    assert "no a" in str(cold.bench.ended[1])
    assert cold.bench.tokens[2] == fake_answer(PROMPT, 4)
    expect_nothing_held(cold)


@LOOPS
@COLD
def test_whoever_leaves_during_the_start_leaves_nothing(way: Way, overlaps: bool):
    """A client that went away: its load, its image and its pages stay."""
    cold = make_cold_engine(way, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card, max_new_tokens=20))
    cold.bench.step()
    (load_id,) = cold.bench.link.orders
    cold.bench.tell(Cancel(1))
    cold.bench.step()
    assert cold.bench.link.cancelled == [load_id]
    cold.bench.link.fail(load_id)
    cold.bench.run_dry()
    expect_nothing_held(cold)
    assert not cold.runner.attached


@LOOPS
@COLD
def test_a_deleted_adapter_finishes_what_has_begun(way: Way, overlaps: bool):
    """Deleted in the middle of its start: wrong tokens, or files that are never purged."""
    cold = make_cold_engine(way, overlaps=overlaps)
    old, new = make_card(version=1), make_card(version=2)
    cold.in_host(old)
    cold.bench.tell(submit(1, old, max_new_tokens=9))
    cold.bench.step()
    cold.bench.link.images.clear()
    cold.bench.tell(Forget(old.key), submit(2, new, max_new_tokens=9))
    cold.bench.step(2)
    assert cold.bench.released == []
    for load_id in tuple(cold.bench.link.orders):
        cold.bench.link.finish(load_id)
    cold.bench.run_dry()
    for request_id, card in ((1, old), (2, new)):
        assert cold.bench.tokens[request_id] == fake_answer(PROMPT, 9, card)
    assert cold.bench.released == ["a"]
    expect_nothing_held(cold)


@LOOPS
def test_an_idle_engine_sleeps_until_its_plan_wants_to_be_asked_again(overlaps: bool):
    """A paused row that is looked at too late, or an engine that spins while it waits."""
    cold = make_cold_engine(Way.ASSIST, overlaps=overlaps, load_s=0.2)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card, max_new_tokens=9, tpot_s=0.3))
    cold.bench.step()
    assert len(cold.bench.tokens[1]) == 1
    patience_s = [cold.bench.step() for _ in range(3)]
    assert all(0.0 < one <= 0.3 + 1e-6 for one in patience_s), patience_s
    land(cold)
    cold.bench.run_dry()
    assert cold.bench.tokens[1] == fake_answer(PROMPT, 9, card)


@LOOPS
def test_the_end_of_the_engine_lets_go_of_images_first(overlaps: bool):
    """Helpers that read what is freed under them, and a process that never ends."""
    cold = make_cold_engine(Way.ASSIST, overlaps=overlaps)
    card = make_card()
    cold.in_host(card)
    cold.bench.tell(submit(1, card, max_new_tokens=20))
    cold.bench.step()
    stats = cold.bench.engine.stats(pages=False).cold
    assert (stats.helpers_up, stats.helper_restarts) == (1, 3)
    cold.bench.tell(Shutdown())
    cold.bench.engine.run()
    assert cold.helpers.stopped and cold.bench.link.held == [] and not cold.runner.cold
