"""An upload whose refusal comes while its bytes are still on their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from lorry.proto.async_client import AsyncAdapters
from lorry.proto.errors import LorryClientError
from lorry.proto.lorry_pb2 import UploadRequest
from lorry.tests.proto_builders import make_peft_directory


def failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


OVERTAKEN = failure(grpc.StatusCode.INTERNAL, "Internal error from Core")


class FakeChannel:
    """Fails each upload as told, in turn, and keeps how many messages each had."""

    def __init__(self, *failures: grpc.aio.AioRpcError) -> None:
        self._failures = list(failures)
        self.num_messages: list[int] = []

    def unary_unary(self, *args: Any, **kwargs: Any) -> None: ...

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Awaitable[None]]:
        async def upload(requests: AsyncIterator[UploadRequest], timeout: float | None) -> None:
            del timeout
            self.num_messages.append(len([request async for request in requests]))
            raise self._failures.pop(0)

        return upload


@pytest.mark.parametrize(
    ("second", "heard"),
    [
        (failure(grpc.StatusCode.PERMISSION_DENIED, "needs the role upload"), "PERMISSION_DENIED"),
        (OVERTAKEN, "INTERNAL"),
    ],
)
def test_the_refusal_is_asked_for_again(
    tmp_path: Path, second: grpc.aio.AioRpcError, heard: str
) -> None:
    """Broken: who may not upload is told INTERNAL, once in a thousand times."""
    channel: Any = FakeChannel(OVERTAKEN, second)
    adapters = AsyncAdapters(channel, "somewhere", None)
    directory = make_peft_directory(tmp_path / "mine", size_bytes=1 << 20)
    with pytest.raises(LorryClientError) as caught:
        asyncio.run(adapters.upload(directory))
    assert caught.value.code == heard
    assert channel.num_messages[0] > 1 and channel.num_messages[1] == 1, "the header alone"


def test_another_internal_error_is_told_as_it_is(tmp_path: Path) -> None:
    channel: Any = FakeChannel(failure(grpc.StatusCode.INTERNAL, "a bug"))
    directory = make_peft_directory(tmp_path / "mine", size_bytes=1 << 10)
    with pytest.raises(LorryClientError, match="a bug"):
        asyncio.run(AsyncAdapters(channel, "somewhere", None).upload(directory))
    assert len(channel.num_messages) == 1
