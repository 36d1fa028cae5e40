"""The overlapped loop over fakes: what it plans ahead, holds back, and computes in vain.

The fake runner computes a launched step when it is waited for, and nobody may have touched its
pages, slots or rows until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorry.server.errors import DeadlineExceeded, Draining
from lorry.server.overlap import choose_overlap
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Cancel, Finish, Forget, Shutdown, Stop
from lorry.tests.engine_bench import PROMPT, Bench, make_bench, submit
from lorry.tests.fakes import fake_answer, make_card, make_key

PENALTY = SamplingParams(repetition_penalty=1.3)


def overlapped(**overrides: Any) -> Bench:
    return make_bench(overlaps=True, **overrides)


def is_empty(bench: Bench) -> bool:
    return bench.pool.stats().num_kv == 0 and not bench.runner.pages.flights


def test_the_next_step_is_launched_before_the_last_one_lands():
    """A loop that waits for each step, or plans one for a request whose length ends it."""
    bench = overlapped()
    bench.tell(submit(1))
    bench.run_dry()
    assert bench.tokens[1] == fake_answer(PROMPT, 4)
    assert bench.runner.num_up == [0, 1, 1, 1]
    assert [tuple(step[0].token_ids) for step in bench.runner.steps] == [PROMPT, (), (), ()]
    assert is_empty(bench)


@pytest.mark.parametrize(
    ("sampling", "num_up"),
    [
        (PENALTY, [1, 0, 0, 0, 1]),  # its newest token first; none is missing for its first
        (SamplingParams(logprobs=0), [1, 0, 0, 0, 0]),  # each is over when it is launched
        (SamplingParams(prompt_logprobs=0), [1, 0, 1, 1, 1]),  # and there it is the first alone
    ],
)
def test_a_step_that_looks_at_tokens_waits_for_no_more_than_it_needs(
    sampling: SamplingParams, num_up: list[int]
):
    """Penalties that miss the newest token, or others' steps that stand still for nothing."""
    bench = overlapped(max_step_tokens=12)
    bench.tell(submit(1, max_new_tokens=12))
    bench.step(4)
    bench.tell(submit(2, sampling=sampling))
    bench.step(7)
    assert isinstance(bench.ended[2], Finish)
    bench.run_dry()
    assert bench.runner.num_up == [0, 1, 1, 1, *num_up, 1, 1, 1]
    assert len(bench.runner.steps) == 12
    assert bench.tokens[1] == fake_answer(PROMPT, 12)


def test_a_row_that_ends_unforeseen_is_computed_once_in_vain():
    """A token after the end, a token that is counted and was never said, or pages given back
    while a step still writes them."""
    answer = fake_answer(PROMPT, 3)
    bench = overlapped()
    bench.tell(submit(1, stop_ids=frozenset({answer[-1]}), max_new_tokens=9))
    while 1 not in bench.ended:
        bench.step()
    finish = bench.ended[1]
    assert isinstance(finish, Finish) and (finish.reason, finish.num_new_tokens) == ("stop", 3)
    stats = bench.engine.stats(pages=True)
    assert (stats.num_running, stats.num_waiting, stats.pages_kv) == (0, 0, 2)
    assert bench.step() == 0.0, "a step that has just landed has freed something"
    assert is_empty(bench)
    assert bench.tokens[1] == answer
    assert len(bench.runner.steps) == 4, "one in vain"
    counters = bench.engine.counters
    assert (counters.steps, counters.tokens_prefill, counters.tokens_decode) == (4, 3, 2)


@pytest.mark.parametrize("command", [Cancel, Stop])
def test_who_leaves_in_flight_hears_no_more_and_gives_back_when_it_lands(
    command: Callable[[int], Any],
):
    """A cancel that waits for a step, or pages that serve another request under it."""
    bench = overlapped(num_pages=8)
    bench.tell(submit(1, make_card(), max_new_tokens=20), submit(2, max_new_tokens=2))
    bench.step(4)
    made = list(bench.tokens[1])
    bench.tell(command(1), submit(3, max_new_tokens=20, prompt_ids=(9,) * 11))
    bench.step()
    assert bench.tokens[1] == made
    owners = {run.owner for run in bench.engine.stats(pages=True).page_runs}
    assert owners == {"", "a", "3"}
    bench.run_dry()
    assert bench.tokens[1] == made == fake_answer(PROMPT, len(made), make_card())
    assert bench.tokens[3] == fake_answer((9,) * 11, 20)
    assert is_empty(bench)


def test_a_deadline_in_flight_waits_for_the_step():
    """A token that was computed in time and is not said, or pages taken from under the step."""
    bench = overlapped()
    bench.tell(submit(1, max_new_tokens=100, timeout_s=0.055), submit(2, max_new_tokens=30))
    bench.run_dry()
    plain = make_bench()
    plain.tell(submit(1, max_new_tokens=100, timeout_s=0.055), submit(2, max_new_tokens=30))
    plain.run_dry()
    assert isinstance(bench.ended[1], DeadlineExceeded)
    assert bench.tokens[1] == plain.tokens[1] and bench.tokens[2] == plain.tokens[2]
    assert is_empty(bench)


def test_a_deadline_and_the_last_token_in_one_step_are_an_answer():
    """A whole answer thrown away because its step was still on its way when time was up."""
    bench = overlapped()
    bench.tell(submit(1, max_new_tokens=3, timeout_s=0.025))
    bench.step(3)
    bench.clock.advance(1.0)
    bench.run_dry()
    assert isinstance(bench.ended[1], Finish)
    assert bench.tokens[1] == fake_answer(PROMPT, 3)


def test_a_forgotten_adapter_stays_while_a_step_reads_it():
    """A slot detached, or pages given to a load, under a step on its way."""
    bench = overlapped()
    card = make_card()
    bench.tell(submit(1, card, max_new_tokens=50))
    bench.step(4)
    bench.tell(Cancel(1), Forget(card.key))
    attached = dict(bench.runner.attached)
    assert attached and len(bench.runner.pages.flights) == 1
    bench.step()
    assert bench.released == ["a"] and not bench.runner.attached
    assert bench.num_available == bench.pool.num_pages


def test_preemption_waits_for_the_step_and_needs_no_victim_that_ends():
    """A victim preempted for pages that its own end, or a neighbour's, was about to free."""
    bench = overlapped(num_pages=4)
    last = fake_answer(PROMPT, 6)[-1]
    bench.tell(submit(1, max_new_tokens=7), submit(2, max_new_tokens=13, stop_ids={last}))
    bench.run_dry()
    assert bench.engine.counters.preemptions == 0
    assert bench.tokens[1] == fake_answer(PROMPT, 7)
    assert bench.tokens[2] == fake_answer(PROMPT, 6)


def test_shutdown_lands_what_is_up():
    """An engine that leaves a step behind, or a request without an answer."""
    bench = overlapped()
    bench.tell(submit(1, max_new_tokens=50), submit(2, max_new_tokens=50))
    bench.step(3)
    assert bench.runner.pages.flights
    bench.tell(Shutdown(), submit(3))
    bench.step()
    assert all(isinstance(bench.ended[request_id], Draining) for request_id in (1, 2, 3))
    assert is_empty(bench)


def test_shutdown_has_no_second_word_for_one_that_is_leaving():
    """Two endings of a request whose stop token came while it was being computed in vain."""
    bench = overlapped()
    bench.tell(submit(1, stop_ids=frozenset(fake_answer(PROMPT, 2)[-1:]), max_new_tokens=9))
    while 1 not in bench.ended:
        bench.step()
    bench.tell(Shutdown())
    bench.step()
    assert isinstance(bench.ended[1], Finish) and is_empty(bench)
    assert bench.engine.counters.requests_failed == 0


def test_many_short_requests_in_the_smallest_table():
    """Rows that are held back for a step and missing for newcomers."""
    bench = overlapped(max_running=3, max_waiting=1)
    stop = frozenset({fake_answer(PROMPT, 2)[-1]})
    for request_id in range(60):
        bench.tell(submit(request_id, stop_ids=stop, max_new_tokens=1 + request_id % 3))
        bench.step()
    bench.run_dry()
    finished = [i for i in bench.ended if isinstance(bench.ended[i], Finish)]
    assert len(finished) > 30
    for request_id in finished:
        assert bench.tokens[request_id] == fake_answer(PROMPT, min(2, 1 + request_id % 3))
    assert is_empty(bench)


@pytest.mark.parametrize("num_pages", [14, 16, 23])
def test_every_answer_is_what_it_is_alone(num_pages: int):
    """The same of the overlapped loop as of the plain one: chunks, evictions, preemptions."""
    bench = overlapped(num_pages=num_pages, max_step_tokens=11)
    cards = [make_card(name) for name in "abcdef"]
    asked = {i: (tuple(range(i, 2 * i + 1)), cards[i % 6] if i % 4 else None) for i in range(24)}
    for request_id, (prompt, card) in asked.items():
        bench.tell(submit(request_id, card, prompt_ids=prompt, max_new_tokens=20))
    bench.run_dry(3000)
    for request_id, (prompt, card) in asked.items():
        assert bench.tokens[request_id] == fake_answer(prompt, 20, card)
    assert bench.engine.counters.adapter_evictions > 0
    assert bench.engine.counters.preemptions > 0
    num_up = bench.runner.num_up
    assert sum(num_up) > len(num_up) / 2, "most steps are launched behind another"


def test_the_fake_sees_what_is_given_away_too_early():
    """A fake under which an engine that releases too early would pass."""
    bench = overlapped()
    bench.tell(submit(1, make_card(), max_new_tokens=9))
    bench.step(4)
    runner, pages = bench.runner, bench.runner.pages
    (flight,) = pages.flights
    page = next(iter(flight.users))
    with pytest.raises(AssertionError, match="on its way"):
        pages.poison([page])
    with pytest.raises(AssertionError, match="on its way"):
        pages.write_image(make_key("b"), [page])
    with pytest.raises(AssertionError, match="reads it"):
        runner.detach(0)
    (row,) = bench.runner.steps[-1]
    other = type(row)(9, (1,), 1, 0, row.pages, -1, True, SamplingParams())
    with pytest.raises(AssertionError, match="given away"):
        runner.launch([other])


def test_the_loop_overlaps_where_something_computes_meanwhile():
    """A CPU server whose tokens come a step late for nothing, or a flag that is overruled."""
    assert choose_overlap(None, device="cuda:1")[0]
    assert not choose_overlap(None, device="cpu")[0]
    for wanted in (True, False):
        for device in ("cpu", "cuda"):
            assert choose_overlap(wanted, device=device)[0] is wanted
