"""`AsyncClient`: the client of client.py for asyncio, the same calls awaited.

A transport only, like its blocking sibling; see there for what it leaves to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from . import lorry_pb2 as pb
from . import lorry_pb2_grpc as pb_grpc
from .completion import Completion, Piece
from .credentials import CredentialOptions, read_credentials
from .errors import Cancelled, DeadlineExceeded, LorryClientError
from .messages import (
    GenerateOptions,
    check_single,
    generate_request,
    list_request,
    num_answers,
    prefetch_request,
)
from .parcel import Parcel, ProgressCallback
from .transport import (
    DEFAULT_ADDRESS,
    StreamFace,
    call_timeout_s,
    has_no_health_service,
    health_watch,
    not_ready,
    translated,
    was_overtaken,
)


class AsyncTextStream(StreamFace):
    """`TextStream` for `async for`."""

    def __init__(self, call: Any, address: str, num_answers: int = 1) -> None:
        super().__init__(call, address, num_answers)
        self._responses = aiter(call)  # one iterator for the whole stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece = await self._next()
        if piece is None:
            raise StopAsyncIteration
        return piece.text

    async def pieces(self) -> AsyncIterator[Piece]:
        """As `TextStream.pieces`."""
        while (piece := await self._next()) is not None:
            yield piece

    async def _next(self) -> Piece | None:
        """None at the end."""
        try:
            with translated(self._address):
                async for response in self._responses:
                    piece = self._transcript.add(response)
                    if piece is not None:
                        return piece
        except asyncio.CancelledError as ended:
            # grpc.aio says so of a closed stream too; a task that is being cancelled must stop.
            task = asyncio.current_task()
            if not self._call.cancelled() or (task is not None and task.cancelling()):
                raise
            raise Cancelled("CANCELLED", "the stream was closed on this side") from ended
        self._transcript.completions()
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncAdapters:
    """`Adapters`, awaited. Reached as `AsyncClient.adapters`."""

    def __init__(self, channel: grpc.aio.Channel, address: str, timeout_s: float | None) -> None:
        self._stub: Any = pb_grpc.AdaptersStub(channel)
        self._address = address
        self._timeout_s = timeout_s

    async def upload(
        self,
        directory: str | Path,
        name: str | None = None,
        *,
        base_fingerprint: str = "",
        progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
    ) -> pb.Adapter:
        """As `Adapters.upload`; files are read in a thread, `progress` is called there."""
        parcel = await asyncio.to_thread(Parcel, directory, name, base_fingerprint=base_fingerprint)
        requests = parcel.requests(progress)

        async def read_aside() -> AsyncIterator[pb.UploadRequest]:
            while (request := await asyncio.to_thread(next, requests, None)) is not None:
                yield request

        timeout_s = call_timeout_s(timeout_s, self._timeout_s)
        try:
            with translated(self._address):
                adapter = await self._stub.Upload(read_aside(), timeout=timeout_s)
        except LorryClientError as error:
            if parcel.failure is not None:
                raise parcel.failure from error
            if was_overtaken(error):
                await self._ask_why(parcel, timeout_s)
            raise
        if parcel.failure is not None:
            raise parcel.failure
        return adapter

    async def _ask_why(self, parcel: Parcel, timeout_s: float | None) -> None:
        """Raises what the server says to the header alone, unless it only misses the bytes."""

        async def header() -> AsyncIterator[pb.UploadRequest]:
            yield pb.UploadRequest(header=parcel.header)

        try:
            with translated(self._address):
                await self._stub.Upload(header(), timeout=timeout_s)
        except LorryClientError as refused:
            if refused.field != "size_bytes" and not was_overtaken(refused):
                raise

    async def get(self, name: str) -> pb.Adapter:
        with translated(self._address):
            return await self._stub.Get(pb.GetAdapterRequest(name=name), timeout=self._timeout_s)

    async def list(self, prefix: str = "", page_size: int = 0) -> AsyncIterator[pb.Adapter]:
        """All adapters whose name begins with `prefix`; asks for a page when it is needed."""
        token = ""
        while True:
            request = list_request(prefix, page_size, token)
            with translated(self._address):
                page = await self._stub.List(request, timeout=self._timeout_s)
            for adapter in page.adapters:
                yield adapter
            token = page.next_page_token
            if not token:
                return

    async def prefetch(
        self, name: str, *, tier: str | None = None, pin: bool | None = None
    ) -> pb.Adapter:
        """As `Adapters.prefetch`."""
        request = prefetch_request(name, tier=tier, pin=pin)
        with translated(self._address):
            return await self._stub.Prefetch(request, timeout=self._timeout_s)

    async def delete(self, name: str) -> int:
        """The version that was deleted; requests that run on it still finish."""
        request = pb.DeleteAdapterRequest(name=name)
        with translated(self._address):
            answer = await self._stub.Delete(request, timeout=self._timeout_s)
        return answer.version


class AsyncClient:
    """Made and used in one running event loop.

    `timeout_s` bounds every call that is given none of its own; None waits for ever. Tokens and
    TLS: `CredentialOptions`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float | None = None,
        **credentials: Unpack[CredentialOptions],
    ) -> None:
        """Raises:
        CredentialsError: an option cannot be used, or the token could be read on its way.
        """
        self.address = address
        self.timeout_s = timeout_s
        self._channel = read_credentials(address, **credentials).async_channel(address)
        self._generation: Any = pb_grpc.GenerationStub(self._channel)
        self._engine: Any = pb_grpc.EngineStub(self._channel)
        self.adapters = AsyncAdapters(self._channel, address, timeout_s)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """Starts an answer; text comes by iterating over the stream."""
        return self._start(generate_request(prompt, **options), timeout_s)

    async def complete(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """The whole answer at once."""
        request = generate_request(prompt, **options)
        check_single(request)
        return (await self._drain(request, timeout_s))[0]

    async def complete_all(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> tuple[Completion, ...]:
        """All `n` answers at once, in the order of their index."""
        return await self._drain(generate_request(prompt, **options), timeout_s)

    def _start(self, request: pb.GenerateRequest, timeout_s: float | None) -> AsyncTextStream:
        timeout_s = call_timeout_s(timeout_s, self.timeout_s)
        with translated(self.address):
            call = self._generation.Generate(request, timeout=timeout_s)
        return AsyncTextStream(call, self.address, num_answers(request))

    async def _drain(
        self, request: pb.GenerateRequest, timeout_s: float | None
    ) -> tuple[Completion, ...]:
        async with self._start(request, timeout_s) as stream:
            async for _ in stream:
                pass
            return stream.finals

    async def info(self) -> pb.Info:
        with translated(self.address):
            return await self._engine.GetInfo(pb.GetInfoRequest(), timeout=self.timeout_s)

    async def stats(self, pages: bool = False) -> pb.Stats:
        """`pages` also asks for the owner of every page."""
        with translated(self.address):
            return await self._engine.GetStats(
                pb.GetStatsRequest(pages=pages), timeout=self.timeout_s
            )

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server answers and its health says that it serves.

        Raises:
            Unavailable: it did not within `timeout_s`.
        """
        try:
            with translated(self.address):
                if not await self._serves(timeout_s):
                    request = pb.GetInfoRequest()
                    await self._engine.GetInfo(request, timeout=timeout_s, wait_for_ready=True)
        except DeadlineExceeded as error:
            raise not_ready(self.address, timeout_s) from error

    async def _serves(self, timeout_s: float) -> bool:
        """True once health says so; False if there is no health service to ask."""
        watch = health_watch(self._channel)
        if watch is None:
            return False
        call = watch.call(watch.request, timeout=timeout_s, wait_for_ready=True)
        try:
            async for answer in call:
                if answer.status == watch.serving:
                    return True
        except grpc.RpcError as failure:
            if has_no_health_service(failure):
                return False
            raise
        finally:
            call.cancel()
        raise not_ready(self.address, timeout_s)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
