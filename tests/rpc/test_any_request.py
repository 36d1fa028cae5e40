"""Whatever a client puts into a request: it is read or refused by name, and nothing else."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.proto import lorry_pb2 as pb
from lorry.server.config import SchedulingConfig
from lorry.server.errors import InvalidRequest
from lorry.server.rpc.chat import ChatTemplate
from lorry.server.rpc.prompt import PromptReader
from lorry.server.rpc.request import MAX_ANSWERS, Wish, complete, read_terms
from lorry.server.rpc.sampling_fields import MAX_BIAS, MAX_PENALTY, MAX_TOP_LOGPROBS
from lorry.server.rpc.text import Text
from lorry.tests.rpc_builders import VOCAB, make_info, make_text

INFO = make_info(max_model_len=48)
CONFIG = SchedulingConfig()


class FakeTokenizer:
    """Renders as a template would: some inputs it joins, some it chokes on."""

    chat_template = "messages"

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        options = {name: value for name, value in options.items() if name != "tokenize"}
        return "".join(turn["role"] + turn["content"] for turn in conversation) + "".join(
            map(str, options["tools"]) if "tools" in options else ()
        )


TEXT = Text(make_text()._backend, ChatTemplate(FakeTokenizer()))

EDGES = [0.0, -0.0, 0.1, 1.0, 1.5, -2.0, 2.0, 10.0, 100.0, 1e-6, math.nan, math.inf]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(width=32))
COUNTS = st.one_of(st.integers(0, 25), st.integers(0, 2**32 - 1))
WORDS = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
VARIABLES = st.dictionaries(st.sampled_from(["tools", "self", "chat_template", "x"]), JSON)
MAYBE: Any = {"seed": st.integers(0, 2**64 - 1), "top_p": NUMBERS, "repetition_penalty": NUMBERS}
SAMPLING: Any = {
    "temperature": NUMBERS,
    "top_k": COUNTS,
    "min_p": NUMBERS,
    "presence_penalty": NUMBERS,
    "frequency_penalty": NUMBERS,
    "logit_bias": st.dictionaries(COUNTS, NUMBERS, max_size=3),
}
REQUEST: Any = {
    "max_new_tokens": COUNTS,
    "n": COUNTS,
    "stop": st.lists(WORDS, max_size=3),
    "include_stop": st.booleans(),
    "stop_token_ids": st.lists(COUNTS, max_size=3),
    "ignore_eos": st.booleans(),
}
MAYBE_REQUEST: Any = {"logprobs": COUNTS, "prompt_logprobs": COUNTS}
CHAT = st.builds(
    lambda turns, template: pb.Chat(
        messages=[pb.ChatMessage(role=role, content=content) for role, content in turns],
        template_json=template,
    ),
    st.lists(st.tuples(WORDS, WORDS), max_size=4),
    st.one_of(st.just(""), WORDS, VARIABLES.map(json.dumps)),
)
IDS = st.builds(pb.TokenIds, ids=st.lists(st.integers(0, VOCAB), max_size=4))
PROMPT = st.one_of(  # most of them good, so that the rest of the request is reached
    st.fixed_dictionaries({"text": st.text(min_size=1, max_size=6)}),
    st.fixed_dictionaries({"text": WORDS}),
    st.fixed_dictionaries({"token_ids": IDS}),
    st.fixed_dictionaries({"chat": CHAT}),
)


async def read(request: pb.GenerateRequest) -> Wish:
    terms = read_terms(request, info=INFO, defaults=CONFIG)
    prompt_ids = await PromptReader().read(request, TEXT, INFO)
    return complete(terms, request, prompt_ids, info=INFO, defaults=CONFIG)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    prompt=PROMPT,
    sampling=st.fixed_dictionaries({}, optional=SAMPLING | MAYBE),
    rest=st.fixed_dictionaries({}, optional=REQUEST | MAYBE_REQUEST),
)
def test_a_request_is_read_within_its_limits_or_refused_by_name(
    prompt: dict[str, Any], sampling: dict[str, Any], rest: dict[str, Any]
):
    """Broken: a value no check foresaw ends as INTERNAL, or reaches the sampler."""
    request = pb.GenerateRequest(**prompt, sampling=pb.Sampling(**sampling), **rest)
    try:
        wish = asyncio.run(read(pb.GenerateRequest.FromString(request.SerializeToString())))
    except InvalidRequest as refused:
        assert refused.field
        assert refused.message
        return
    params = wish.terms.sampling
    assert 1 <= wish.terms.num_answers <= MAX_ANSWERS
    assert 1 <= wish.max_new_tokens <= INFO.max_model_len - len(wish.prompt_ids)
    assert all(token < VOCAB for token in (*wish.prompt_ids, *wish.terms.stop_ids))
    assert math.isfinite(params.temperature)
    assert 0 < params.top_p <= 1
    assert 0 <= params.min_p <= 1
    assert 0.1 <= params.repetition_penalty <= 10
    assert abs(params.presence_penalty) <= MAX_PENALTY
    assert abs(params.frequency_penalty) <= MAX_PENALTY
    assert params.top_k <= VOCAB
    assert all(token < VOCAB and abs(bias) <= MAX_BIAS for token, bias in params.logit_bias)
    assert -1 <= params.logprobs <= MAX_TOP_LOGPROBS
    assert -1 <= params.prompt_logprobs <= MAX_TOP_LOGPROBS
