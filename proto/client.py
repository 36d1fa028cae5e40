"""`Client`, which blocks; and the names that `import lorry` offers.

A transport only: requests, transcripts and uploads are built in messages.py and parcel.py,
failures decoded in errors.py. No call is repeated behind the caller's back; whoever wants to
wait for a server calls `wait_ready`. Imports grpc, never torch, numpy or transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, Unpack

import grpc

from . import lorry_pb2 as pb
from . import lorry_pb2_grpc as pb_grpc
from .async_client import AsyncClient
from .completion import Completion, Piece
from .credentials import CredentialOptions, read_credentials
from .errors import DeadlineExceeded, LorryClientError
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
)

__all__ = ["Adapters", "AsyncClient", "Client", "TextStream"]


class TextStream(StreamFace):
    """One answer on its way: iterate for text, then read `final`. Closing it cancels.

    One item per message of the server, so an item may be "" while a character is incomplete.
    Of several answers the texts come mixed: `pieces` says whose each is.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        piece = self._next()
        if piece is None:
            raise StopIteration
        return piece.text

    def pieces(self) -> Iterator[Piece]:
        """The same items with their answer's index, tokens and log-probabilities."""
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> Piece | None:
        """None at the end."""
        with translated(self._address):
            for response in self._call:
                piece = self._transcript.add(response)
                if piece is not None:
                    return piece
        self._transcript.completions()  # an end without a final message is an error
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Adapters:
    """The adapters of one server. Reached as `Client.adapters`."""

    def __init__(self, channel: grpc.Channel, address: str, timeout_s: float | None) -> None:
        self._stub = pb_grpc.AdaptersStub(channel)
        self._address = address
        self._timeout_s = timeout_s

    def upload(
        self,
        directory: str | Path,
        name: str | None = None,
        *,
        base_fingerprint: str = "",
        progress: ProgressCallback | None = None,
        timeout_s: float | None = None,
    ) -> pb.Adapter:
        """Sends a PEFT directory; usable under its name when this returns.

        Raises:
            AdapterDirectoryError: a file is missing or unreadable.
            LorryClientError: the server refused it and says why.
        """
        parcel = Parcel(directory, name, base_fingerprint=base_fingerprint)
        try:
            with translated(self._address):
                adapter = self._stub.Upload(
                    parcel.requests(progress), timeout=call_timeout_s(timeout_s, self._timeout_s)
                )
        except LorryClientError as error:
            if parcel.failure is None:
                raise
            raise parcel.failure from error
        if parcel.failure is not None:
            raise parcel.failure
        return adapter

    def get(self, name: str) -> pb.Adapter:
        with translated(self._address):
            return self._stub.Get(pb.GetAdapterRequest(name=name), timeout=self._timeout_s)

    def list(self, prefix: str = "", page_size: int = 0) -> Iterator[pb.Adapter]:
        """All adapters whose name begins with `prefix`; asks for a page when it is needed."""
        token = ""
        while True:
            request = list_request(prefix, page_size, token)
            with translated(self._address):
                page = self._stub.List(request, timeout=self._timeout_s)
            yield from page.adapters
            token = page.next_page_token
            if not token:
                return

    def prefetch(
        self, name: str, *, tier: str | None = None, pin: bool | None = None
    ) -> pb.Adapter:
        """Brings it nearer before anybody asks for it; returns once that has begun.

        `tier`: pool (the default) or host. `pin` True keeps it in the pool as long as its name
        lives, False takes the pin away and moves nothing.
        """
        request = prefetch_request(name, tier=tier, pin=pin)
        with translated(self._address):
            return self._stub.Prefetch(request, timeout=self._timeout_s)

    def delete(self, name: str) -> int:
        """The version that was deleted; requests that run on it still finish."""
        with translated(self._address):
            answer = self._stub.Delete(pb.DeleteAdapterRequest(name=name), timeout=self._timeout_s)
        return answer.version


class Client:
    """Talks to one server; safe to share between threads.

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
        self._channel = read_credentials(address, **credentials).sync_channel(address)
        self._generation = pb_grpc.GenerationStub(self._channel)
        self._engine = pb_grpc.EngineStub(self._channel)
        self.adapters = Adapters(self._channel, address, timeout_s)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """Starts an answer; text comes by iterating over the stream."""
        return self._start(generate_request(prompt, **options), timeout_s)

    def complete(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """The whole answer at once."""
        request = generate_request(prompt, **options)
        check_single(request)
        return self._drain(request, timeout_s)[0]

    def complete_all(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> tuple[Completion, ...]:
        """All `n` answers at once, in the order of their index."""
        return self._drain(generate_request(prompt, **options), timeout_s)

    def _start(self, request: pb.GenerateRequest, timeout_s: float | None) -> TextStream:
        timeout_s = call_timeout_s(timeout_s, self.timeout_s)
        with translated(self.address):
            call = self._generation.Generate(request, timeout=timeout_s)
        return TextStream(call, self.address, num_answers(request))

    def _drain(
        self, request: pb.GenerateRequest, timeout_s: float | None
    ) -> tuple[Completion, ...]:
        with self._start(request, timeout_s) as stream:
            for _ in stream:
                pass
            return stream.finals

    def info(self) -> pb.Info:
        with translated(self.address):
            return self._engine.GetInfo(pb.GetInfoRequest(), timeout=self.timeout_s)

    def stats(self, pages: bool = False) -> pb.Stats:
        """`pages` also asks for the owner of every page."""
        with translated(self.address):
            return self._engine.GetStats(pb.GetStatsRequest(pages=pages), timeout=self.timeout_s)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server answers and its health says that it serves.

        Raises:
            Unavailable: it did not within `timeout_s`.
        """
        try:
            with translated(self.address):
                if not self._serves(timeout_s):
                    request = pb.GetInfoRequest()
                    self._engine.GetInfo(request, timeout=timeout_s, wait_for_ready=True)
        except DeadlineExceeded as error:
            raise not_ready(self.address, timeout_s) from error

    def _serves(self, timeout_s: float) -> bool:
        """True once health says so; False if there is no health service to ask."""
        watch = health_watch(self._channel)
        if watch is None:
            return False
        call = watch.call(watch.request, timeout=timeout_s, wait_for_ready=True)
        try:
            for answer in call:
                if answer.status == watch.serving:
                    return True
        except grpc.RpcError as failure:
            if has_no_health_service(failure):
                return False
            raise
        finally:
            call.cancel()
        raise not_ready(self.address, timeout_s)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
