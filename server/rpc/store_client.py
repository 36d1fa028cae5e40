"""Questions to the store worker and their answers.

Owns the pipe to the worker that is up now and the calls that wait. When it dies each of them
fails here; the supervisor then calls `run` with the pipe of the next one. Knows no gRPC and
nothing of what the worker keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ...adapters.image import ImageSpec
from ...adapters.key import AdapterCard, AdapterKey
from ..errors import LorryError
from ..store_messages import (
    AbortUpload,
    BeginUpload,
    CardPage,
    CommitUpload,
    Configure,
    CountCards,
    DeleteAdapter,
    Failed,
    GetCard,
    ListCards,
    Ok,
    PurgeAdapter,
    Request,
    Stored,
    StoreFailed,
    StoreReady,
    Sweep,
    Unproven,
    UploadChunk,
)
from .link import Ended, Outlook, PipeLink


class StoreClient:
    """All methods belong to the event loop's thread; calls raise what the worker answers."""

    def __init__(
        self, *, on_ready: Callable[[StoreReady], None], on_lost: Callable[[], None]
    ) -> None:
        self.ready = False
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._link: PipeLink | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._start_error: LorryError | None = None
        self._was_ready = False
        self.num_heard = 0  # messages, of all lives
        self.outlook: Callable[[], Outlook] = Outlook  # of the worker while it is down

    async def run(self, conn: Connection) -> Ended:
        """Serves over this pipe until the worker is gone."""
        self._start_error, self._was_ready = None, False
        link = PipeLink(conn, name="store", on_message=self._receive, fold=lambda all_: all_)
        self._link = link
        try:
            await link.wait_closed()
        finally:
            self._lose()
        return Ended(self._start_error, self._was_ready)

    def configure(self, spec: ImageSpec, max_pages: int, fingerprint: str) -> None:
        """Sent before any later question; the answer says nothing."""
        if self.ready:
            self._drop(Configure(self._next_id(), spec, max_pages, fingerprint))

    def sweep(self, keep: tuple[AdapterKey, ...]) -> None:
        """Once in a worker's life, before anything is asked of it."""
        self._drop(Sweep(self._next_id(), keep))

    def unproven(self, key: AdapterKey) -> None:
        if self.ready:
            self._drop(Unproven(self._next_id(), key))

    async def get_card(self, tenant: str, name: str) -> AdapterCard:
        return await self._call(GetCard(self._next_id(), tenant, name))

    async def list_cards(self, tenant: str, *, prefix: str, limit: int, after: str) -> CardPage:
        return await self._call(ListCards(self._next_id(), tenant, prefix, limit, after))

    def ask_for_life(self) -> None:
        """Whatever the worker says next is the answer; nobody waits for it here."""
        self._drop(CountCards(self._next_id()))

    async def count_cards(self, tenant: str | None = None) -> int:
        return await self._call(CountCards(self._next_id(), tenant))

    async def begin_upload(
        self,
        tenant: str,
        name: str,
        *,
        config_json: bytes,
        size_bytes: int,
        sha256: str,
        base_fingerprint: str,
    ) -> int:
        """The id that the chunks and the commit name: never used twice, so that an upload
        cannot go on in another worker, under the id of another upload.
        """
        upload_id = self._next_id()
        await self._call(
            BeginUpload(
                upload_id,
                tenant,
                name,
                config_json,
                size_bytes,
                sha256,
                base_fingerprint,
            )
        )
        return upload_id

    async def upload_chunk(self, upload_id: int, data: bytes) -> None:
        """Returns when the worker has it: the sender goes no faster than the disk."""
        await self._call(UploadChunk(self._next_id(), upload_id, data))

    async def commit_upload(self, upload_id: int) -> Stored:
        return await self._call(CommitUpload(self._next_id(), upload_id))

    def abort_upload(self, upload_id: int) -> None:
        if self.ready:
            self._drop(AbortUpload(self._next_id(), upload_id))

    async def delete(self, tenant: str, name: str) -> AdapterKey:
        return await self._call(DeleteAdapter(self._next_id(), tenant, name))

    def purge(self, key: AdapterKey) -> None:
        """No answer is waited for: a worker that is down sweeps when it opens again."""
        if self.ready:
            self._drop(PurgeAdapter(self._next_id(), key))

    def hang_up(self) -> None:
        if self._link is not None:
            self._link.hang_up()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _call(self, request: Request) -> Any:
        if self._link is None or not self.ready:
            raise self._unavailable("the adapter store is not up; it is being started")
        answer = asyncio.get_running_loop().create_future()
        self._calls[request.id] = answer
        self._link.send(request)
        try:
            return await answer
        finally:
            self._calls.pop(request.id, None)

    def _drop(self, request: Request) -> None:
        """Sends what needs no answer."""
        if self._link is not None:
            self._link.send(request)

    def _receive(self, message: Any) -> None:
        self.num_heard += 1
        match message:
            case Ok(id=call_id, value=value):
                answer = self._calls.get(call_id)
                if answer is not None and not answer.done():
                    answer.set_result(value)
            case Failed(id=call_id, error=error):
                answer = self._calls.get(call_id)
                if answer is not None and not answer.done():
                    answer.set_exception(error)
            case StoreReady():
                self.ready = self._was_ready = True
                self._on_ready(message)
            case StoreFailed(error):
                self._start_error = error
            case _:
                raise TypeError(f"no message of the store: {type(message).__name__}")

    def _lose(self) -> None:
        self._link = None
        self.ready = False
        error = self._unavailable("the adapter store stopped; it is being restarted")
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(error)
        self._on_lost()

    def _unavailable(self, message: str) -> LorryError:
        return self.outlook().error(message)
