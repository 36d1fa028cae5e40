"""Stop commands and log-probabilities through the engine's loop, over fakes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lorry.adapters.errors import AdapterRefused
from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.scheduling.sampling import SamplingParams, TokenLogprobs
from lorry.server.seam import Cancel, Finish, Stop
from lorry.tests.engine_bench import PROMPT, make_bench, submit
from lorry.tests.fakes import BASE, FakeRunner, fake_answer, fake_logprobs, make_card

ALL = SamplingParams(logprobs=2, prompt_logprobs=1)


def expected_prompt(prompt: Sequence[int], adapter: str = BASE) -> list[TokenLogprobs]:
    return [fake_logprobs(adapter, prompt[:i], prompt[i], 1) for i in range(1, len(prompt))]


def expected_answer(prompt: Sequence[int], tokens: list[int], adapter: str = BASE):
    known = [*prompt, *tokens]
    return [fake_logprobs(adapter, known[:i], known[i], 2) for i in range(len(prompt), len(known))]


def test_stop_ends_the_answer_with_what_was_made():
    """An answer that runs on after its stop string, or a count that leaves tokens out."""
    bench = make_bench()
    bench.tell(submit(1, max_new_tokens=50))
    bench.step(3)
    bench.tell(Stop(1))
    bench.step()
    finish = bench.ended[1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.num_new_tokens) == ("stop", 3)
    assert bench.tokens[1] == fake_answer(PROMPT, 3)
    assert bench.engine.counters.requests_finished == 1
    assert bench.num_available == bench.pool.num_pages


def test_stop_that_crosses_the_end_is_no_second_end():
    """Two last words to one request, or an engine that dies of an unknown id."""
    bench = make_bench()
    bench.tell(submit(1), submit(2, max_new_tokens=50))
    bench.step(5)
    assert isinstance(bench.ended[1], Finish)
    bench.ended.clear()
    bench.tell(Stop(1), Stop(99), Cancel(2), Stop(2))
    bench.step(2)
    assert not bench.ended
    assert bench.num_available == bench.pool.num_pages


def test_stop_before_the_first_token():
    """A request stopped in the line, or waiting for its adapter, that keeps its place."""
    bench = make_bench(instant=False, max_running=1)
    bench.tell(submit(1, max_new_tokens=50), submit(2), submit(3, make_card()), Stop(2))
    bench.step(3)
    bench.tell(Stop(3))
    bench.step()
    for request_id in (2, 3):
        finish = bench.ended[request_id]
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.num_new_tokens) == ("stop", 0)
        assert finish.timings.prefill_s == finish.timings.decode_s == 0.0
    bench.tell(Stop(1))
    bench.step()
    for order in list(bench.link.orders):
        bench.link.finish(order)
    bench.run_dry()
    assert bench.pool.stats().num_kv == 0


def test_stop_of_a_preempted_request():
    """One that gave its pages back: its tokens count, and it must not come back."""
    bench = make_bench(num_pages=8)
    bench.tell(*[submit(i, max_new_tokens=24) for i in range(3)])
    while not bench.engine.counters.preemptions:
        bench.step()
    made = {i: len(bench.tokens[i]) for i in range(3)}
    bench.tell(Stop(2))
    bench.step()
    finish = bench.ended[2]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.num_new_tokens) == ("stop", made[2])
    assert finish.timings.num_preemptions == 1
    bench.run_dry()
    assert bench.tokens[2] == fake_answer(PROMPT, made[2])
    assert bench.tokens[0] == bench.tokens[1] == fake_answer(PROMPT, 24)


def test_log_probabilities_come_with_their_tokens():
    """A record told of another token, or told to those who did not ask."""
    bench = make_bench()
    card = make_card()
    bench.tell(submit(1, sampling=ALL), submit(2), submit(3, card, sampling=ALL))
    bench.run_dry()
    for request_id, adapter in ((1, BASE), (3, str(card.key))):
        expected = expected_answer(PROMPT, bench.tokens[request_id], adapter)
        assert bench.logprobs[request_id] == expected
        assert bench.prompt_logprobs[request_id] == expected_prompt(PROMPT, adapter)
    assert not bench.logprobs[2] and not bench.prompt_logprobs[2]


@pytest.mark.parametrize(("num_pages", "max_prompt_logits"), [(14, 256), (16, 3), (40, 1)])
def test_a_prompt_is_told_once_through_chunks_and_preemptions(
    num_pages: int, max_prompt_logits: int
):
    """A recomputed prompt told again, or a place between two chunks never."""
    bench = make_bench(num_pages=num_pages, max_step_tokens=11, max_prompt_logits=max_prompt_logits)
    prompts = [tuple(range(i, 2 * i + 1)) for i in range(20)]
    for i, prompt in enumerate(prompts):
        sampling = ALL if i % 3 else SamplingParams()
        bench.tell(submit(i, prompt_ids=prompt, max_new_tokens=20, sampling=sampling))
    bench.run_dry(4000)
    for i, prompt in enumerate(prompts):
        assert bench.tokens[i] == fake_answer(prompt, 20)
        assert bench.prompt_logprobs[i] == (expected_prompt(prompt) if i % 3 else [])
        assert bench.logprobs[i] == (expected_answer(prompt, bench.tokens[i]) if i % 3 else [])
    if num_pages < 40:
        assert bench.engine.counters.preemptions > 0
    most = max(sum(len(row.tell) for row in rows) for rows in bench.runner.steps)
    assert most <= max_prompt_logits


class LoudInThePrompt(FakeRunner):
    """The second chunk of an adapter's prompt has a place whose logits are not finite."""

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        found = super().run(rows)
        loud = tuple(row.row for row in rows if row.adapter_slot >= 0 and row.tell and row.start)
        told = tuple(one for one in found.told if one.row not in loud)
        tokens = {row: token for row, token in found.tokens.items() if row not in loud}
        return StepResult(tokens, loud, told=told)


def test_a_prompt_whose_logits_are_not_finite_ends_its_request():
    """NaN told as a log-probability, or an engine that dies of a broken row in mid-prompt."""
    bench = make_bench(max_step_tokens=8, runner_kind=LoudInThePrompt)
    prompt = tuple(range(20))
    bench.tell(submit(1, make_card("loud"), prompt_ids=prompt, sampling=ALL), submit(2))
    bench.run_dry()
    assert isinstance(bench.ended[1], AdapterRefused)
    assert len(bench.prompt_logprobs[1]) < 19 and not bench.tokens[1]
    assert isinstance(bench.ended[2], Finish)
