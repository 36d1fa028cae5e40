"""What was computed is not computed again, and nobody meets what is not his own beginning.

The fake runner reads every page's tokens and whose adapter wrote them, so that a wrong page, or one
that was freed, fails the test that meets it.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorry.adapters.key import AdapterCard
from lorry.server.config import MemoryConfig
from lorry.server.errors import DeadlineExceeded, InternalError
from lorry.server.execution.batch import StepResult
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Cancel, Finish, Forget
from lorry.tests.engine_bench import NO_CACHE, Bench, make_bench, submit
from lorry.tests.fakes import FakeRunner, fake_answer, make_card

PROMPT = tuple(range(10, 19))  # nine tokens: two full pages of four, and one to compute
LOOPS = pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"])


def ask(
    bench: Bench, request_id: int, prompt: tuple[int, ...] = PROMPT, **settings: Any
) -> tuple[int, int]:
    """Alone; the answer is checked. Returns prompt tokens that were computed, and found."""
    card: AdapterCard | None = settings.get("adapter")
    num_steps = len(bench.runner.steps)
    bench.tell(submit(request_id, **{"prompt_ids": prompt, "max_new_tokens": 5, **settings}))
    bench.run_dry()
    finish = bench.ended[request_id]
    assert isinstance(finish, Finish)
    assert bench.tokens[request_id] == fake_answer(prompt, finish.num_new_tokens, card)
    rows = [row for step in bench.runner.steps[num_steps:] for row in step]
    num_prefilled = sum(row.num_tokens for row in rows if row.start < len(prompt))
    return num_prefilled, finish.num_cached_tokens


@LOOPS
def test_a_prompt_that_comes_again_is_not_computed_again(overlaps):
    """A system prompt would be paid for by every request."""
    bench = make_bench(overlaps=overlaps)
    assert ask(bench, 1) == (9, 0)
    assert ask(bench, 2) == (1, 8)
    memory = bench.engine.stats(pages=False).memory
    assert (memory.prefix_lookup_tokens, memory.prefix_hit_tokens) == (18, 8)
    assert memory.pages_cached == 3 and bench.num_available == bench.pool.num_pages


@LOOPS
def test_a_prompt_is_shared_while_its_first_request_still_runs(overlaps):
    """Requests that come together would each compute what they have in common."""
    bench = make_bench(overlaps=overlaps)
    bench.tell(submit(1, prompt_ids=PROMPT, max_new_tokens=30))
    bench.step(4)
    assert ask(bench, 2) == (1, 8)
    assert bench.tokens[1] == fake_answer(PROMPT, 30)


def test_the_next_turn_of_a_conversation_finds_the_answer_too():
    """Every turn would compute all turns before it."""
    bench = make_bench()
    ask(bench, 1, max_new_tokens=8)
    turn = (*PROMPT, *bench.tokens[1], 77, 78)
    # Known are 17 tokens, computed 16: the last one was sampled and never fed.
    assert ask(bench, 2, turn) == (len(turn) - 16, 16)


def test_a_request_that_tells_its_prompt_finds_nothing_and_leaves_it_for_others():
    """Log-probabilities of cached places do not exist."""
    bench = make_bench()
    ask(bench, 1)
    sampling = SamplingParams(prompt_logprobs=0)
    assert ask(bench, 2, sampling=sampling)[1] == 0
    assert len(bench.prompt_logprobs[2]) == len(PROMPT) - 1
    assert ask(bench, 3)[1] == 8


@pytest.mark.parametrize(("shared", "num_cached"), [(False, 0), (True, 8)])
def test_tenants_share_only_where_the_operator_says_so(shared, num_cached):
    """Time to the first token would tell a tenant what others have asked."""
    bench = make_bench(memory=MemoryConfig(share_prefixes=shared))
    ask(bench, 1, tenant="one")
    assert ask(bench, 2, tenant="two")[1] == num_cached
    assert ask(bench, 3, tenant="one")[1] == 8


def test_base_and_adapters_do_not_meet_each_others_pages():
    """KV of another adapter is another function of the same tokens."""
    bench = make_bench()
    for request_id, card in enumerate((None, make_card("a"), make_card("b"))):
        assert ask(bench, request_id, adapter=card)[1] == 0
    for request_id, card in enumerate((None, make_card("a"), make_card("b")), 3):
        assert ask(bench, request_id, adapter=card)[1] == 8


@LOOPS
def test_new_content_under_an_old_name_meets_nothing_old(overlaps):
    """Answers would be a mixture of two adapters."""
    bench = make_bench(overlaps=overlaps)
    ask(bench, 1, adapter=make_card())
    bench.tell(Forget(make_card().key))
    bench.run_dry()
    assert bench.pool.num_free == bench.pool.num_pages, "idle pages of a deleted one go at once"
    new = make_card(version=2)
    assert ask(bench, 2, adapter=new)[1] == 0
    assert ask(bench, 3, adapter=new)[1] == 8


@LOOPS
def test_who_runs_on_when_his_adapter_is_deleted_leaves_nothing(overlaps):
    """Pages that nobody can meet again would stay until something needs them."""
    bench = make_bench(overlaps=overlaps)
    card = make_card()
    ask(bench, 1, adapter=card)
    bench.tell(submit(2, card, prompt_ids=PROMPT, max_new_tokens=9))
    bench.step(3)
    bench.tell(Forget(card.key))
    bench.run_dry()
    assert bench.tokens[2] == fake_answer(PROMPT, 9, card)
    assert bench.pool.num_free == bench.pool.num_pages and bench.released == ["a"]


@LOOPS
def test_a_cancelled_answer_stays_and_an_unfinished_prompt_does_not(overlaps):
    """Of a prompt without a token nobody has seen that its logits are finite."""
    bench = make_bench(overlaps=overlaps, max_step_tokens=8)
    bench.tell(submit(1, prompt_ids=PROMPT, max_new_tokens=40))
    bench.step(12)
    bench.tell(Cancel(1), submit(2, prompt_ids=tuple(range(50, 90))))
    bench.step(3)
    bench.tell(Cancel(2))
    bench.run_dry()
    assert bench.tokens[2] == []
    known = (*PROMPT, *bench.tokens[1])
    assert bench.engine.stats(pages=False).memory.pages_cached == (len(known) - 1) // 4
    assert ask(bench, 3, (*known, 99))[1] == (len(known) - 1) // 4 * 4


class OverflowingRunner(FakeRunner):
    """From the twelfth token on, logits are not finite: the one that fills the third page."""

    def run(self, rows: Any) -> StepResult:
        found = super().run(rows)
        broken = tuple(row.row for row in rows if row.sample and row.start + row.num_tokens > 11)
        tokens = {row: token for row, token in found.tokens.items() if row not in broken}
        return StepResult(tokens, broken)


@LOOPS
def test_what_broke_is_not_kept(overlaps):
    """One overflow would break every later request with that beginning."""
    bench = make_bench(overlaps=overlaps, runner_kind=OverflowingRunner)
    bench.tell(submit(1, prompt_ids=tuple(range(12))), submit(2, prompt_ids=PROMPT))
    bench.run_dry()
    assert all(isinstance(bench.ended[request_id], InternalError) for request_id in (1, 2))
    # Of the second the prompt was sound, and three tokens were told.
    assert bench.engine.stats(pages=False).memory.pages_cached == 2


def test_what_breaks_after_its_client_has_left_is_not_kept():
    """The step that overflows is on its way when the cancel comes: nobody hears of it."""
    bench = make_bench(overlaps=True, runner_kind=OverflowingRunner)
    bench.tell(submit(1, prompt_ids=PROMPT, max_new_tokens=9))
    while not bench.runner.steps or bench.runner.steps[-1][0].start < 10:
        bench.step()
    bench.tell(Cancel(1))
    bench.run_dry()
    assert bench.runner.steps[-1][0].start == 11 and 1 not in bench.ended
    assert bench.engine.stats(pages=False).memory.pages_cached == 2


@LOOPS
def test_who_expires_leaves_what_was_shared_before(overlaps):
    """Pages that the plan has freed would be told to the cache."""
    bench = make_bench(overlaps=overlaps)
    bench.tell(submit(1, prompt_ids=PROMPT, max_new_tokens=40, timeout_s=0.1))
    bench.run_dry()
    assert isinstance(bench.ended[1], DeadlineExceeded) and len(bench.tokens[1]) > 4
    assert bench.engine.stats(pages=False).memory.pages_cached == 2
    assert ask(bench, 2) == (1, 8)


@LOOPS
def test_cached_pages_give_way_to_whoever_needs_them(overlaps):
    """A full cache would leave no room for requests, or an adapter be loaded over shared pages."""
    bench = make_bench(num_pages=12, overlaps=overlaps)
    for request_id in range(6):
        first = 20 * request_id
        ask(bench, request_id, tuple(range(first, first + 12)))
    ask(bench, 6, adapter=make_card(num_pages=5))
    memory = bench.engine.stats(pages=False).memory
    assert memory.prefix_evictions > 10
    assert ask(bench, 7, tuple(range(10, 30)), max_new_tokens=20)


@LOOPS
def test_a_preempted_request_goes_on_behind_what_was_kept(overlaps):
    """Every preemption would compute a long answer anew, also where there was room to keep it."""
    kept = found = 0
    for num_pages in (9, 10, 11, 13):
        bench = make_bench(num_pages=num_pages, overlaps=overlaps)
        prompts = {i: tuple(range(30 * i, 30 * i + 6)) for i in range(3)}
        bench.tell(*(submit(i, prompt_ids=ids, max_new_tokens=18) for i, ids in prompts.items()))
        bench.run_dry()
        for request_id, prompt in prompts.items():
            assert bench.tokens[request_id] == fake_answer(prompt, 18)
        assert bench.engine.counters.preemptions > 0
        kept += bench.engine.stats(pages=False).memory.preempted_tokens_kept
        rows = [row for step in bench.runner.steps for row in step]
        found += sum(row.start > 0 and row.num_tokens > 1 for row in rows)
    assert kept > 0 and found > 0


def test_switched_off_it_keeps_nothing_and_says_so():
    """A plan does not know that the cache is off, and names what it would keep."""
    bench = make_bench(memory=NO_CACHE, num_pages=10)
    assert ask(bench, 1) == ask(bench, 2) == (9, 0)
    bench.tell(*(submit(i, prompt_ids=PROMPT, max_new_tokens=18) for i in (3, 4, 5)))
    bench.run_dry()
    assert bench.engine.counters.preemptions > 0
    assert bench.engine.stats(pages=False).memory.preempted_tokens_kept == 0
    assert bench.pool.num_free == bench.pool.num_pages


def test_a_prompt_to_be_told_in_a_row_without_hits_does_not_end_the_engine():
    """The planner counted on cached pages that others wait for, was told that nobody finds any, and
    the engine died when the running request grew into them.
    """
    bench = make_bench(num_pages=24, max_running=1)
    shared = tuple(range(40))
    ask(bench, 0, shared, max_new_tokens=1)
    bench.tell(submit(1, prompt_ids=tuple(range(100, 108)), max_new_tokens=76))
    bench.step(2)
    # The columns of who waits have grown to seven rows; the next one does not wait for hits.
    bench.tell(*(submit(i, prompt_ids=shared, max_new_tokens=1) for i in range(2, 8)))
    told = SamplingParams(prompt_logprobs=0)
    bench.tell(submit(8, prompt_ids=shared, max_new_tokens=1, sampling=told))
    bench.run_dry()
    assert bench.engine.counters.requests_finished == 9
