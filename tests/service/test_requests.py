"""Everything a request may say, through a real server, against the model itself.

The server is the shared one: a small pool, steps too short for a whole prompt. The reference is
PEFT's model in this process, asked with the server's own tokens.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry import AsyncClient, Client
from lorry.proto.completion import Completion, TokenLogprob
from lorry.proto.errors import InvalidRequest
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.builders import VOCAB, AdapterSpec, make_adapter, make_tokenizer
from lorry.tests.parity import assert_same_tokens
from lorry.tests.sampling_builders import theirs
from lorry.tests.service_shared import CHAT_TEMPLATE, MAX_STEP_TOKENS, SharedServer

pytestmark = pytest.mark.slow

PROMPT = "the lorry leaves the yard at five, and comes back late"
ADAPTER = "r8"
MAX_LEN = 512


@dataclass(frozen=True, slots=True)
class Served:
    server: SharedServer
    client: Client
    tokenizer: Any
    model: Any  # PEFT's, with the adapter
    base: Any

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Of the adapter, one row a place."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids])).logits[0].float()


@pytest.fixture
def served(shared: SharedServer) -> Served:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return Served(shared, shared.client, tokenizer, shared.model(ADAPTER), shared.model(""))


def complete(served: Served, prompt: str = PROMPT, **options: Any) -> Completion:
    return served.client.complete(prompt, adapter=ADAPTER, **options)


def assert_told(entries: tuple[TokenLogprob, ...], logits: torch.Tensor, ids: list[int]) -> None:
    """Each entry is what the model's own distribution says of the token at its place."""
    wanted = torch.log_softmax(logits, dim=-1)
    assert [entry.token_id for entry in entries] == ids
    for entry, row in zip(entries, wanted, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)
        best = row.topk(len(entry.top)).values.tolist()
        assert [ranked.logprob for ranked in entry.top] == pytest.approx(best, abs=1e-3)
        for ranked in entry.top:
            assert ranked.logprob == pytest.approx(float(row[ranked.token_id]), abs=1e-3)


def test_logprobs_are_the_models_own(served: Served):
    """Broken: log-probabilities of other places, of the base, or after temperature and bias."""
    answer = complete(
        served,
        max_new_tokens=12,
        temperature=1.5,
        seed=4,
        logit_bias={9: 3.0},
        repetition_penalty=1.5,
        logprobs=3,
        prompt_logprobs=2,
    )
    prompt = served.ids(PROMPT)
    assert len(prompt) > 2 * MAX_STEP_TOKENS, "the prompt took several steps"
    logits = served.logits([*prompt, *answer.token_ids])
    assert_told(answer.prompt_logprobs, logits[: len(prompt) - 1], prompt[1:])
    assert_told(answer.logprobs, logits[len(prompt) - 1 : -1], list(answer.token_ids))
    assert {len(entry.top) for entry in answer.logprobs} == {3}
    spelt = b"".join(entry.token for entry in answer.prompt_logprobs)
    assert spelt.decode() == PROMPT


GREEDY = [
    {"repetition_penalty": 1.5},
    {"logit_bias": {7: 4.0, 40: -3.0}},
    {"repetition_penalty": 0.5, "logit_bias": {12: 2.5}},
]


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy_choices_are_those_of_transformers_processors(
    served: Served, options: dict[str, Any]
):
    """Broken: a field is lost, or means something else, between the wire and the sampler."""
    plain = complete(served, max_new_tokens=16, ignore_eos=True)
    answer = complete(served, max_new_tokens=16, ignore_eos=True, **options)
    assert answer.token_ids != plain.token_ids, "the field changes nothing here"
    known = [*served.ids(PROMPT), *answer.token_ids]
    logits = served.logits(known)
    bias = tuple(options.get("logit_bias", {}).items())
    params = SamplingParams(**(options | {"logit_bias": bias}))
    first = len(known) - len(answer.token_ids)
    for place, token in enumerate(answer.token_ids, first):
        scores = theirs(logits[place - 1 : place], params, known[:place])[0]
        assert float(scores.max() - scores[token]) < 1e-3


def test_sampled_tokens_are_among_those_that_the_filters_leave(served: Served):
    """Broken: a draw falls on a token that top_k, top_p or min_p has ruled out."""
    cases: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.25}]
    for options in cases:
        answers = served.client.complete_all(
            PROMPT, adapter=ADAPTER, max_new_tokens=12, temperature=2.0, seed=1, n=3, **options
        )
        assert len({answer.token_ids for answer in answers}) > 1, "all answers are one"
        for answer in answers:
            known = [*served.ids(PROMPT), *answer.token_ids]
            logits = served.logits(known)
            params = SamplingParams(temperature=2.0, **options)
            first = len(known) - len(answer.token_ids)
            for place, token in enumerate(answer.token_ids, first):
                assert theirs(logits[place - 1 : place], params, known[:place])[0][token] > -1e30


def test_penalties_on_the_answer_forbid_what_it_has(served: Served):
    """Broken: presence and frequency penalties never reach the sampler, or count the prompt."""
    plain = complete(served, max_new_tokens=40, ignore_eos=True)
    for options in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        answer = complete(served, max_new_tokens=40, ignore_eos=True, **options)
        known = [*served.ids(PROMPT), *answer.token_ids]
        first = len(known) - len(answer.token_ids)
        logits = served.logits(known)
        for place, token in enumerate(answer.token_ids, first):
            scores = logits[place - 1].clone()
            for seen in set(known[first:place]):
                count = known[first:place].count(seen)
                scores[seen] -= options.get("presence_penalty", 0.0)
                scores[seen] -= count * options.get("frequency_penalty", 0.0)
            assert float(scores.max() - scores[token]) < 1e-3
        assert answer.token_ids != plain.token_ids


def test_any_of_several_answers_can_be_had_again_by_its_seed(served: Served):
    """Broken: `Final.seed` of the third answer gives another one when it is asked alone."""
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 16, "top_p": 0.9}
    answers = served.client.complete_all(PROMPT, adapter=ADAPTER, seed=11, n=4, **options)
    assert [answer.index for answer in answers] == [0, 1, 2, 3]
    assert answers[0].seed == 11
    assert len({answer.token_ids for answer in answers}) == 4
    for answer in answers:
        alone = complete(served, seed=answer.seed, **options)
        assert (alone.token_ids, alone.text) == (answer.token_ids, answer.text)
    greedy = served.client.complete_all(PROMPT, adapter=ADAPTER, max_new_tokens=8, n=2)
    assert greedy[0].token_ids == greedy[1].token_ids


def test_a_stop_string_ends_the_answer_and_frees_its_pages(served: Served):
    """Broken: the engine works on behind an answer that its client has in full."""
    options: dict[str, Any] = {"max_new_tokens": 400, "ignore_eos": True}
    whole = complete(served, **options)
    stop = whole.text[10:13]
    at = whole.text.index(stop)
    for include in (False, True):
        before = served.client.stats().tokens_decode_total
        answer = complete(served, stop=stop, include_stop=include, logprobs=0, **options)
        made = served.client.stats().tokens_decode_total - before
        assert len(answer.token_ids) <= made + 1 < 390, "the engine was not stopped"
        assert answer.text == whole.text[: at + len(stop) if include else at]
        assert (answer.reason, answer.stop_string) == ("stop", stop)
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert answer.usage.completion_tokens == len(answer.token_ids) == len(answer.logprobs)
        served.server.settle()


def test_an_adapter_whose_answers_were_left_can_be_deleted(served: Served, tmp_path: Path):
    """Broken: one of several answers of a call that was cancelled keeps its adapter for ever."""
    client = served.client
    client.adapters.upload(make_adapter(served.base, tmp_path, AdapterSpec("left", seed=3)))
    with client.generate(PROMPT, adapter="left", n=3, max_new_tokens=400, ignore_eos=True) as call:
        next(call)
    assert client.adapters.delete("left") == 1
    served.server.tidy()
    served.server.settle()


def test_a_chat_is_the_prompt_that_its_template_makes(served: Served):
    """Broken: a chat is answered after other tokens than the model was taught."""
    assert served.client.info().has_chat_template
    messages: Any = [{"role": "user", "content": "naïve 😀?"}]
    ids = served.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    answer = served.client.complete(messages=messages, adapter=ADAPTER, max_new_tokens=8)
    assert answer.usage.prompt_tokens == len(ids)
    by_ids = served.client.complete(ids, adapter=ADAPTER, max_new_tokens=8)
    assert answer.token_ids == by_ids.token_ids
    messages.append({"role": "assistant", "content": "So"})
    continued = served.client.complete(messages=messages, adapter=ADAPTER, max_new_tokens=8)
    assert (
        continued.token_ids
        == served.client.complete(
            [*ids, *served.ids("So")[1:]], adapter=ADAPTER, max_new_tokens=8
        ).token_ids
    )


def test_many_kinds_of_request_share_a_batch_and_none_changes_another(served: Served):
    """Broken: one row's penalties, bias, filters or log-probabilities reach its neighbours."""
    kinds: list[dict[str, Any]] = [
        {},
        {"adapter": ADAPTER},
        {"adapter": ADAPTER, "repetition_penalty": 1.5, "logprobs": 2},
        {"temperature": 1.0, "seed": 3, "top_k": 5},
        {"adapter": ADAPTER, "temperature": 1.0, "seed": 3, "top_p": 0.5, "prompt_logprobs": 1},
        {"logit_bias": {9: 5.0}, "presence_penalty": 1.0},
        {"adapter": ADAPTER, "stop": ["e"], "frequency_penalty": 0.5},
    ]

    async def ask_all() -> list[Completion]:
        async with AsyncClient(served.client.address, timeout_s=60) as client:
            calls = [client.complete(PROMPT, max_new_tokens=24, **kind) for kind in kinds]
            return await asyncio.gather(*calls)

    together = asyncio.run(ask_all())
    for kind, answer in zip(kinds, together, strict=True):
        alone = served.client.complete(PROMPT, max_new_tokens=24, **kind)
        assert (alone.token_ids, alone.text) == (answer.token_ids, answer.text), kind
    plain = served.base.generate(
        input_ids=torch.tensor([served.ids(PROMPT)]),
        attention_mask=torch.ones(1, len(served.ids(PROMPT)), dtype=torch.int64),
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=2,
    )[0, len(served.ids(PROMPT)) :].tolist()
    assert_same_tokens(served.base, served.ids(PROMPT), together[0].token_ids, plain)


def test_a_prompt_that_leaves_no_room_is_refused_with_the_limit(served: Served):
    """Broken: a long prompt is cut in silence, as text, ids or chat."""
    long = "x" * MAX_LEN
    calls: list[dict[str, Any]] = [
        {"prompt": long},
        {"prompt": served.ids(long)},
        {"messages": [{"role": "user", "content": long}]},
    ]
    for call in calls:
        prompt = call.pop("prompt", None)
        with pytest.raises(InvalidRequest, match=str(MAX_LEN)):
            served.client.complete(prompt, **call)
    with pytest.raises(InvalidRequest, match=str(VOCAB - 1)):
        served.client.complete([VOCAB])
