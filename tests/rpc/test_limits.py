"""The limits that GetInfo tells, against the checks that keep them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.config import SchedulingConfig
from lorry.server.errors import InvalidRequest
from lorry.server.rpc.chat import check_count, read_chat
from lorry.server.rpc.limits import request_limits
from lorry.server.rpc.request import read_terms
from lorry.server.rpc.text import Text
from lorry.tests.rpc_builders import VOCAB, make_info, make_text, running_service

CONFIG = SchedulingConfig(max_waiting=7)
INFO = make_info(vocab_size=1 << 20)


def chat(messages: int, template_bytes: int) -> pb.Chat:
    frame = len('{"a":""}')
    return pb.Chat(
        messages=[pb.ChatMessage(role="user", content="x")] * messages,
        template_json='{"a":"%s"}' % ("x" * (template_bytes - frame)),
    )


# By limit: a request that asks for this much.
ASKS: dict[str, Any] = {
    "n": lambda most: pb.GenerateRequest(n=most),
    "logprobs": lambda most: pb.GenerateRequest(logprobs=most, prompt_logprobs=most),
    "stop_strings": lambda most: pb.GenerateRequest(stop=["x"] * most),
    "stop_chars": lambda most: pb.GenerateRequest(stop=["é" * most]),
    "stop_token_ids": lambda most: pb.GenerateRequest(stop_token_ids=[3] * most),
    "logit_bias": lambda most: pb.GenerateRequest(
        sampling=pb.Sampling(logit_bias=dict.fromkeys(range(most), 1.0))
    ),
    "chat_messages": lambda most: pb.GenerateRequest(chat=chat(most, 9)),
    "template_bytes": lambda most: pb.GenerateRequest(chat=chat(1, most)),
}


def read(request: pb.GenerateRequest) -> None:
    if request.HasField("chat"):
        check_count(request.chat)
        read_chat(request.chat)
    read_terms(request, info=INFO, defaults=CONFIG)


def test_each_limit_told_is_the_limit_kept():
    """Broken: a client that keeps to what the server tells is refused, or could ask for more."""
    limits = request_limits(CONFIG)
    assert set(ASKS) == {field.name for field in limits.DESCRIPTOR.fields}
    assert limits.n == CONFIG.max_waiting
    for name, ask in ASKS.items():
        most = getattr(limits, name)
        read(ask(most))
        with pytest.raises(InvalidRequest, match=str(most)):
            read(ask(most + 1))


def test_info_says_whether_there_is_a_chat_template():
    """Broken: a client has to try a chat to know whether the model takes one."""

    async def body() -> list[pb.Info]:
        async with asyncio.timeout(30), running_service() as service:
            stub: Any = pb_grpc.EngineStub(service.channel)
            before = await stub.GetInfo(pb.GetInfoRequest())
            template: Any = object()
            service.front.set_text(Text(make_text()._backend, template))
            return [before, await stub.GetInfo(pb.GetInfoRequest())]

    before, after = asyncio.run(body())
    assert [before.has_chat_template, after.has_chat_template] == [False, True]
    assert before.vocab_size == VOCAB
    assert before.limits.n > 0
