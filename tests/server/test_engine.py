"""The engine's loop over fakes: what is asked comes back, and everything is let go of."""

from __future__ import annotations

import pytest

from lorry.adapters.errors import AdapterLoadFailed
from lorry.server.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    Overloaded,
    RequestTooLarge,
)
from lorry.server.seam import AskStats, Cancel, Finish, Forget, Shutdown
from lorry.tests.engine_bench import PROMPT, make_bench, submit
from lorry.tests.fakes import fake_answer, make_card


def test_a_base_request_streams_its_tokens_and_frees_its_pages():
    """Tokens lost between runner and front end, or pages kept after the end."""
    bench = make_bench()
    bench.tell(submit(1))
    bench.run_dry()
    assert bench.tokens[1] == fake_answer(PROMPT, 4)
    finish = bench.ended[1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.num_prompt_tokens, finish.num_new_tokens) == ("length", 3, 4)
    assert bench.num_available == bench.pool.num_pages


def test_decode_steps_feed_the_token_from_the_device():
    """A host round trip of every sampled token."""
    bench = make_bench()
    bench.tell(submit(1))
    bench.run_dry()
    prompt, *decodes = [step[0] for step in bench.runner.steps]
    assert tuple(prompt.token_ids) == (5, 6, 7)
    assert [tuple(row.token_ids) for row in decodes] == [(), (), ()]


def test_a_stop_token_ends_the_answer_and_is_part_of_it():
    """Answers that run past their end-of-sequence token."""
    bench = make_bench()
    first, second = fake_answer(PROMPT, 2)
    bench.tell(submit(1, stop_ids=frozenset({second})))
    bench.run_dry()
    finish = bench.ended[1]
    assert bench.tokens[1] == [first, second]
    assert isinstance(finish, Finish) and finish.reason == "stop"


def test_a_request_waits_for_its_adapter_and_others_do_not():
    """A load that stalls the step of everyone else."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card("slow")), submit(2))
    bench.step(4)
    assert bench.tokens[1] == [] and len(bench.tokens[2]) > 0
    bench.link.finish(bench.link.started[0].load_id)
    bench.run_dry()
    assert len(bench.tokens[1]) == 4
    finish = bench.ended[1]
    assert isinstance(finish, Finish) and finish.timings.load_s > 0


def test_two_requests_of_one_adapter_share_one_load():
    """The same bytes crossing the link twice."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card()), submit(2, make_card()))
    bench.step(2)
    assert len(bench.link.started) == 1


def test_a_failed_load_fails_only_its_own_requests():
    """One unreadable adapter taking the server, or its neighbours, down."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card("bad")), submit(2, make_card("good")))
    bench.step(2)
    load_ids = {order.card.key.name: order.load_id for order in bench.link.started}
    bench.link.fail(load_ids["bad"])
    bench.link.finish(load_ids["good"])
    bench.run_dry()
    assert isinstance(bench.ended[1], AdapterLoadFailed)
    assert isinstance(bench.ended[2], Finish)


def test_a_deleted_adapter_goes_when_its_last_user_leaves():
    """Pages of a deleted adapter kept, or taken from under a running request."""
    bench = make_bench()
    card = make_card()
    bench.tell(submit(1, card))
    bench.step(3)
    bench.tell(Forget(card.key))
    bench.step()
    assert bench.released == [] and bench.runner.attached
    bench.run_dry()
    assert len(bench.tokens[1]) == 4
    assert bench.released == ["a"] and not bench.runner.attached
    assert bench.host_tier.forgotten == [card.key]
    assert bench.num_available == bench.pool.num_pages


def test_forgetting_an_adapter_nobody_loaded_is_answered_at_once():
    """Files of a deleted adapter that are never purged."""
    bench = make_bench()
    bench.tell(Forget(make_card().key))
    bench.step()
    assert bench.released == ["a"]


def test_a_new_version_runs_beside_the_old_one():
    """New content under an old name meeting old weights."""
    bench = make_bench(num_pages=64)
    old, new = make_card(version=1), make_card(version=2)
    bench.tell(submit(1, old, max_new_tokens=20))
    bench.step(3)
    bench.tell(Forget(old.key), submit(2, new, max_new_tokens=20))
    bench.step(3)
    slots = {row.adapter_slot for row in bench.runner.steps[-1]}
    assert len(slots) == 2
    bench.run_dry()
    assert bench.released == ["a"]


def test_cancel_frees_pages_within_a_step():
    """A client that left, whose pages stay."""
    bench = make_bench()
    bench.tell(submit(1, max_new_tokens=50))
    bench.step(3)
    bench.tell(Cancel(1))
    bench.step()
    assert bench.num_available == bench.pool.num_pages
    bench.tell(Cancel(1), Cancel(99))
    bench.step()


def test_a_passed_deadline_ends_the_request_with_the_numbers():
    """A request that decodes on for nobody."""
    bench = make_bench()
    bench.tell(submit(1, max_new_tokens=100, timeout_s=0.05))
    bench.run_dry()
    assert isinstance(bench.ended[1], DeadlineExceeded)
    assert bench.num_available == bench.pool.num_pages


def test_what_can_never_fit_is_refused_with_the_arithmetic():
    """A request that waits for ever, or an engine that dies of it."""
    bench = make_bench(num_pages=8)
    bench.tell(submit(1, max_new_tokens=40), submit(2, make_card(num_pages=8)), submit(3))
    bench.run_dry()
    assert isinstance(bench.ended[1], RequestTooLarge) and "11 pages" in str(bench.ended[1])
    assert isinstance(bench.ended[2], RequestTooLarge)
    assert isinstance(bench.ended[3], Finish)


def test_a_full_queue_refuses_with_a_retry_time():
    """An unbounded queue."""
    bench = make_bench(max_running=1, max_waiting=2)
    bench.tell(*[submit(request_id) for request_id in range(5)])
    bench.run_dry()
    refused = [error for error in bench.ended.values() if isinstance(error, Overloaded)]
    assert refused and all(error.retry_after_s > 0 for error in refused)


@pytest.mark.parametrize("num_pages", [14, 16, 23])
def test_every_answer_is_what_it_is_alone_after_eviction_and_preemption(num_pages: int):
    """A pool too small for its load that loses a token, recomputes less than all of it, or reads
    the pages of somebody else."""
    bench = make_bench(num_pages=num_pages, max_step_tokens=11)
    cards = [make_card(name) for name in "abcdef"]
    prompts = [tuple(range(request_id, 2 * request_id + 1)) for request_id in range(24)]
    for request_id, prompt in enumerate(prompts):
        card = cards[request_id % 6] if request_id % 4 else None
        bench.tell(submit(request_id, card, prompt_ids=prompt, max_new_tokens=20))
    bench.run_dry(3000)
    for request_id, prompt in enumerate(prompts):
        card = cards[request_id % 6] if request_id % 4 else None
        assert bench.tokens[request_id] == fake_answer(prompt, 20, card)
        assert isinstance(bench.ended[request_id], Finish)
    assert bench.engine.counters.adapter_evictions > 0
    assert bench.engine.counters.preemptions > 0
    rows = [row for step in bench.runner.steps for row in step]
    assert any(row.start > 0 and len(row.token_ids) > 1 for row in rows), "nothing was chunked"
    assert any(list(row.pages) != sorted(row.pages) for row in rows), "no pages out of order"
    assert bench.pool.stats().num_kv == 0


def test_a_paused_row_meets_its_deadline():
    """An engine that sleeps for ever over a running request: its pool is full, the rest is held
    by a load whose requester has gone, and nobody waits."""
    bench = make_bench(num_pages=6, instant=False)
    bench.tell(submit(1, max_new_tokens=18, timeout_s=0.6))
    bench.step(2)
    bench.tell(submit(2, make_card(num_pages=2)))
    bench.step()
    bench.tell(Cancel(2))
    patience_s = bench.step(16)
    assert len(bench.tokens[1]) == 14 and bench.link.orders, "paused at the end of its pages"
    left_s = 0.6 - 19 * 0.01
    assert 0 < patience_s <= left_s + 0.02
    bench.clock.advance(patience_s)
    bench.step()
    assert isinstance(bench.ended[1], DeadlineExceeded)
    # The load still holds its pages; once it lands they are nobody's need.
    bench.link.finish(bench.link.started[0].load_id)
    bench.run_dry()
    assert bench.pool.stats().num_kv == 0


def test_stats_say_who_owns_every_page():
    """A picture of the pool that does not add up."""
    bench = make_bench()
    bench.tell(submit(1, make_card("x"), max_new_tokens=50, tenant="acme"))
    bench.step(4)
    bench.tell(AskStats(7, pages=True))
    bench.step()
    stats = bench.stats[0]
    assert sum(run.count for run in stats.page_runs) == stats.pages_total == 32
    owners = {(run.kind, run.owner, run.tenant) for run in stats.page_runs}
    assert owners >= {("adapter", "x", "default"), ("kv", "1", "acme")}
    assert stats.pages_adapter == 2 and stats.residents[0].num_users == 1


def test_shutdown_answers_everyone():
    """A stream that never ends because the engine left."""
    bench = make_bench()
    bench.tell(submit(1, max_new_tokens=50), submit(2, max_new_tokens=50))
    bench.step(2)
    bench.tell(Shutdown())
    bench.step()
    assert bench.engine.stopping
    assert all(isinstance(bench.ended[request_id], Draining) for request_id in (1, 2))


def test_a_request_behind_the_shutdown_is_answered_too():
    """A client whose request shares a batch with the shutdown would wait for ever."""
    bench = make_bench()
    bench.tell(Shutdown(), submit(9, make_card()))
    bench.step()
    assert isinstance(bench.ended[9], Draining)
    assert bench.num_available == bench.pool.num_pages and not bench.link.started


def test_the_audit_sees_a_page_that_was_taken_twice():
    """An audit that cannot fail."""
    bench = make_bench()
    bench.pool._free.append(bench.pool._free[0])  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InternalError, match="two owners"):
        bench.step()
