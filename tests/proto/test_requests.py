"""Options of a call as they go on the wire, and answers as they come back, in both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto.async_client import AsyncClient
from lorry.proto.client import Client
from lorry.proto.completion import Piece, RankedToken, TokenLogprob, Transcript, plain_logprobs
from lorry.proto.errors import InvalidRequest, ServerFault
from lorry.proto.messages import GenerateOptions, generate_request
from lorry.tests.proto_builders import CHUNKS, TEXT, FakeServer

USER = {"role": "user", "content": "schön"}
BEST = RankedToken(5, b"x", -0.25)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20) as client:
        yield client


def test_every_option_reaches_its_own_field():
    """Broken: an option is dropped or crossed with another on its way to the wire."""
    options: Any = {
        "adapter": "upper",
        "max_new_tokens": 5,
        "n": 3,
        "temperature": 0.5,
        "seed": 0,
        "top_k": 7,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "logit_bias": {4: -1.5},
        "stop": ["a", "b"],
        "include_stop": True,
        "stop_token_ids": [9],
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": 2,
        "ttft_s": 1.5,
        "tpot_s": 0.25,
    }
    assert {*options, "messages", "template"} == set(GenerateOptions.__annotations__)
    assert generate_request("x", **options) == pb.GenerateRequest(
        text="x",
        adapter="upper",
        max_new_tokens=5,
        n=3,
        sampling=pb.Sampling(
            temperature=0.5,
            seed=0,
            top_k=7,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.75,
            logit_bias={4: -1.5},
        ),
        stop=["a", "b"],
        include_stop=True,
        stop_token_ids=[9],
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=2,
        slo=pb.Slo(ttft_s=1.5, tpot_s=0.25),
    )


def test_what_is_left_out_stays_unset():
    """Broken: a top_p of 0, which is none, is sent for a top_p that was not given."""
    request = generate_request([5])
    for field in ("top_p", "repetition_penalty", "seed"):
        assert not request.sampling.HasField(field)
    assert not request.HasField("logprobs")
    assert not request.HasField("prompt_logprobs")
    assert generate_request("x", stop="end").stop == ["end"], "one text is one stop string"


def test_messages_go_as_a_chat():
    """Broken: the roles are lost, or the template's variables are."""
    request = generate_request(messages=[USER], template={"thinking": False, "tools": [{"a": 1}]})
    assert request.WhichOneof("prompt") == "chat"
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("user", "schön")]
    assert json.loads(request.chat.template_json) == {"thinking": False, "tools": [{"a": 1}]}
    assert generate_request(messages=[USER]).chat.template_json == ""


BAD: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {}),
    ("prompt", {"prompt": "x", "messages": [USER]}),
    ("template", {"prompt": "x", "template": {"tools": []}}),
    ("chat.messages[0]", {"messages": [{"role": "user"}]}),
    ("chat.messages[0]", {"messages": [USER | {"tool_calls": []}]}),
    ("chat.messages[0].content", {"messages": [{"role": "user", "content": None}]}),
    ("chat.messages[0].content", {"messages": [{"role": "user", "content": "\ud800"}]}),
    ("stop", {"prompt": "x", "stop": ["\ud800"]}),
    ("sampling.top_k", {"prompt": "x", "top_k": -1}),
    ("sampling.logit_bias", {"prompt": "x", "logit_bias": {-1: 1.0}}),
    ("n", {"prompt": "x", "n": -1}),
    ("logprobs", {"prompt": "x", "logprobs": 1.5}),
    ("adapter", {"prompt": "x", "adapter": 5}),
    ("include_stop", {"prompt": "x", "include_stop": "no"}),
    ("sampling.temperature", {"prompt": "x", "temperature": "0.5"}),
    ("sampling.top_p", {"prompt": "x", "top_p": 10**400}),
    ("sampling.min_p", {"prompt": "x", "min_p": np.array([0.1, 0.2])}),
    ("slo.ttft_s", {"prompt": "x", "ttft_s": [1]}),
    ("sampling.logit_bias", {"prompt": "x", "logit_bias": [4]}),
    ("sampling.logit_bias", {"prompt": "x", "logit_bias": {4: "1"}}),
    ("stop", {"prompt": "x", "stop": b"ab"}),
    ("stop", {"prompt": "x", "stop": [b"ab"]}),
    ("stop", {"prompt": "x", "stop": 5}),
    ("stop_token_ids", {"prompt": "x", "stop_token_ids": 5}),
    ("stop_token_ids", {"prompt": "x", "stop_token_ids": [1.5]}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": {3, 1}}),
    ("prompt", {"prompt": np.array(5)}),
    ("token_ids", {"prompt": np.array([[1, 2]])}),
    ("token_ids", {"prompt": np.array([1.0])}),
    ("messages", {"messages": "hi"}),
    ("messages", {"messages": USER}),
    ("chat.messages[0]", {"messages": ["hi"]}),
    ("chat.messages[1].role", {"messages": [USER, USER | {"role": 1}]}),
    ("template", {"messages": [USER], "template": [1]}),
    ("template", {"messages": [USER], "template": {"a": {1}}}),
    ("template", {"messages": [USER], "template": {"a": float("nan")}}),
]


@pytest.mark.parametrize(("field", "call"), BAD, ids=range(len(BAD)))
def test_what_the_wire_cannot_carry_names_its_field(field: str, call: dict[str, Any]):
    """Broken: a message's tool calls are dropped, or protobuf raises from deep inside."""
    prompt = call.pop("prompt", None)
    with pytest.raises(InvalidRequest) as caught:
        generate_request(prompt, **call)
    assert caught.value.field == field


def test_none_is_as_if_left_out():
    """Broken: a wrapper that hands on what it was given, or None, gets a bare TypeError."""
    names = set(GenerateOptions.__annotations__)
    nothing: Any = dict.fromkeys(names)
    assert generate_request("x", **nothing) == generate_request("x")
    nothing["messages"] = [USER]
    assert generate_request(**nothing) == generate_request(messages=[USER])


@pytest.mark.parametrize("ids", [[1, 2], [0], [5], []], ids=str)
@pytest.mark.parametrize("kind", [tuple, iter, np.array, partial(np.array, dtype=np.uint32)])
def test_token_ids_may_be_of_any_kind(kind: Any, ids: list[int]):
    """Broken: an array's truth is asked for, and token 0 alone is sent as an empty prompt."""
    listed = kind(ids) if ids else ids
    request = generate_request(listed)
    assert request.WhichOneof("prompt") == "token_ids"
    assert list(request.token_ids.ids) == ids
    assert generate_request("x", stop_token_ids=kind(ids) if ids else ids).stop_token_ids == ids


def test_an_option_that_does_not_exist_is_no_option():
    """Broken: a misspelt option is ignored, and the default answers."""
    with pytest.raises(TypeError, match="top_q"):
        generate_request("x", top_q=0.5)  # type: ignore[call-arg]


def test_several_answers_come_back_each_whole(server: FakeServer, client: Client):
    """Broken: answers are mixed, or come in the order in which they happened to end."""
    first, second, third = client.complete_all("x", n=3)
    assert (first.text, first.index) == (TEXT, 0)
    assert (second.text, second.index) == ("".join(f"1{text}" for text, _ in CHUNKS), 1)
    assert (third.index, third.token_ids) == (2, (1, 2, 3, 4))

    async def ask() -> Any:
        async with AsyncClient(server.address, timeout_s=20) as other:
            return await other.complete_all("x", n=3)

    assert asyncio.run(ask()) == (first, second, third)


def test_pieces_say_whose_they_are(server: FakeServer, client: Client):
    """Broken: a client that shows two answers side by side cannot tell them apart."""
    stream = client.generate("x", n=2)
    pieces = list(stream.pieces())
    assert pieces[:2] == [Piece(0, "Grüße", (1, 2), ()), Piece(1, "1Grüße", (1, 2), ())]
    assert stream.token_ids == (1, 2, 3, 4)
    assert [final.index for final in stream.finals] == [0, 1]

    async def ask() -> Any:
        async with AsyncClient(server.address, timeout_s=20) as other:
            stream = other.generate("x", n=2)
            return [piece async for piece in stream.pieces()]

    assert asyncio.run(ask()) == pieces


def test_log_probabilities_come_back_with_their_bytes(client: Client):
    """Broken: half a character comes back as a replacement character, or `top` is lost."""
    answer = client.complete("x", logprobs=1, prompt_logprobs=1, stop=["end"])
    assert len(answer.logprobs) == len(answer.token_ids)
    assert answer.logprobs[0] == TokenLogprob(1, b"\xc3", -1.5, (BEST,))
    assert answer.logprobs[0].text == "\N{REPLACEMENT CHARACTER}"
    assert [entry.token_id for entry in answer.prompt_logprobs] == [9]
    assert (answer.reason, answer.stop_string, answer.stop_token_id) == ("stop", "end", None)
    plain = json.loads(json.dumps(plain_logprobs(answer.logprobs)))
    assert plain[0]["token_hex"] == "c3"
    assert plain[0]["top"] == [{"token_id": 5, "text": "x", "token_hex": "78", "logprob": -0.25}]


def test_complete_gives_one_answer_and_says_so(client: Client):
    """Broken: answers that were asked and paid for are thrown away."""
    with pytest.raises(InvalidRequest, match="complete_all"):
        client.complete("x", n=2)


def test_an_answer_that_is_missing_is_an_error(client: Client):
    """Broken: two of three answers pass for all of them."""
    with pytest.raises(ServerFault, match="no final message"):
        client.complete_all("x", n=3, adapter="torn")


def test_an_answer_nobody_asked_for_is_an_error():
    """Broken: a faulty server's stray index ends in an IndexError, or in another answer."""
    with pytest.raises(ServerFault, match="answer 2 of 2"):
        Transcript(2).add(pb.GenerateResponse(chunk=pb.Chunk(index=2)))
