"""What a client sends to break the front end: long texts, text that is no text, long names."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from lorry.adapters.errors import AdapterLoadFailed, AdapterRefused
from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.rpc.prompt import SHORT_TEXT_CHARS
from lorry.server.seam import Reject, Submit
from lorry.server.store_messages import GetCard, Unproven
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    Service,
    make_card,
    make_info,
    running_service,
)


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


async def generate(service: Service, **fields: Any) -> None:
    stub = pb_grpc.GenerationStub(service.channel)
    async for _ in stub.Generate(pb.GenerateRequest(**fields), timeout=PATIENCE_S):
        pass


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


class Watched:
    """A tokenizer that counts how often it is asked, and knows on which thread."""

    def __init__(self, service: Service) -> None:
        self._text = service.front.require_text()
        self.max_token_bytes = self._text.max_token_bytes
        self.stream = self._text.stream
        self.token_bytes = self._text.token_bytes
        self.threads: list[threading.Thread] = []

    def encode(self, text: str) -> Any:
        self.threads.append(threading.current_thread())
        return self._text.encode(text)

    def encode_aside(self, text: str) -> Any:
        self.threads.append(threading.current_thread())
        return self._text.encode_aside(text)


def test_a_text_that_could_never_fit_is_refused_before_it_is_encoded():
    """Broken: a few million bytes of text take seconds and GiB before they are refused."""

    async def body(service: Service) -> None:
        text: Any = Watched(service)
        service.front.text = text
        limit = make_info().max_model_len * text.max_token_bytes
        code, said = await refusal(generate(service, text="x" * (limit + 1)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"text has {limit + 1} bytes" in said
        assert f"at most {limit}" in said
        assert text.threads == []
        code, said = await refusal(generate(service, text="x" * (limit - 1)))
        assert f"{limit} tokens" in said, "short enough to be counted, <bos> included"

    run(body)


def test_what_is_wrong_besides_the_prompt_is_refused_before_it_is_encoded():
    """Broken: a request that is refused anyway costs as much as one that is answered."""

    async def body(service: Service) -> None:
        text: Any = Watched(service)
        service.front.text = text
        for wrong in (
            {"n": 10_000},
            {"max_new_tokens": 64},
            {"stop": [""]},
            {"sampling": pb.Sampling(temperature=-1.0)},
            {"stop_token_ids": [999_999]},
            {"slo": pb.Slo(ttft_s=-1.0)},
        ):
            code, _ = await refusal(generate(service, text="abc", **wrong))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text.threads == []

    run(body)


def test_a_long_text_is_encoded_beside_the_loop_to_the_same_tokens():
    """Broken: one long prompt stops every stream, or has other tokens than a short one's."""
    words = "naïve 😀 " * SHORT_TEXT_CHARS

    async def body(service: Service) -> None:
        plain = service.front.require_text()
        text: Any = Watched(service)
        service.front.text = text
        await generate(service, text=words, max_new_tokens=1)
        assert (await service.engine.heard(Submit)).prompt_ids == plain.encode(words)
        assert len(text.threads) == 1
        assert text.threads[0] is not threading.current_thread()

    run(body, engine=FakeEngine(info=make_info(max_model_len=1 << 20)))


def test_too_many_token_ids_are_refused_by_their_number():
    """Broken: millions of ids become objects, and the first wrong one is what is told."""

    async def body(service: Service) -> None:
        ids = pb.TokenIds(ids=[999_999] * 500)
        code, said = await refusal(generate(service, token_ids=ids))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "500 tokens" in said

    run(body)


@pytest.mark.parametrize("name", ["a" * 20_000, "../x", "a\nb", "\N{GRINNING FACE}"])
def test_a_name_that_is_none_is_refused_at_every_door(name: str):
    """Broken: a long name overflows the trailers, and its caller sees a broken connection."""

    async def body(service: Service) -> None:
        adapters = pb_grpc.AdaptersStub(service.channel)
        calls = [
            generate(service, text="a", adapter=name),
            adapters.Get(pb.GetAdapterRequest(name=name)),
            adapters.Delete(pb.DeleteAdapterRequest(name=name)),
        ]
        for call in calls:
            code, said = await refusal(call)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert len(said) < 500

    run(body)


@pytest.mark.parametrize("word", ["\ud800", "\N{GRINNING FACE}" * 3000, "x" * 20_000])
def test_whatever_an_error_quotes_it_arrives(word: str):
    """Broken: a config with a lone surrogate, or a long regex, ends its upload in UNKNOWN."""

    async def body(service: Service) -> None:
        error = AdapterRefused(f"target_modules has {word}", field=word)
        asking = asyncio.create_task(refusal(generate(service, text="a")))
        submit = await service.engine.heard(Submit)
        service.engine.say(Reject(submit.request_id, error))
        code, said = await asking
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert said.startswith("target_modules has ")

    run(body, engine=FakeEngine(behaviour="silent"))


def test_an_image_that_cannot_be_loaded_is_looked_at_again():
    """Broken: a lost image fails every request for its adapter until the server restarts."""

    async def body(service: Service) -> None:
        async def ask() -> Submit:
            asking = asyncio.create_task(refusal(generate(service, text="a", adapter="upper")))
            submit = await service.engine.heard(Submit)
            service.engine.say(Reject(submit.request_id, AdapterLoadFailed("gone", name="upper")))
            assert (await asking)[0] is grpc.StatusCode.INTERNAL
            return submit

        await ask()
        await service.store.heard(GetCard)
        assert (await service.store.heard(Unproven)).key == make_card("upper").key
        await ask()
        await service.store.heard(GetCard)

    run(body, engine=FakeEngine(behaviour="silent"))
