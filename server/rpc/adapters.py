"""`Adapters`: upload, get, list, delete, prefetch.

Translates and nothing else. An upload is passed on as it arrives, never whole in memory, and
no faster than the store takes it; one that is cut short, too long, silent or cancelled leaves
nothing behind. Where an adapter is comes from the engine and goes beside its card; an engine that
cannot say so leaves it out. Knows neither files nor formats: the store worker checks those.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from ...adapters.errors import AdapterTooLarge, UploadCorrupt
from ...adapters.key import AdapterCard, AdapterKey
from ...adapters.names import check_name
from ...proto import lorry_pb2 as pb
from ...proto import lorry_pb2_grpc as pb_grpc
from ..clock import Clock
from ..errors import DeadlineExceeded, Draining, EngineUnavailable, InvalidRequest
from ..seam import AdapterResidency
from .front import Front
from .guard import Context, answering
from .link import DRAINING
from .residency import check_fits, check_pins, read_wanted, residency_message

UPLOAD = "/lorry.v1.Adapters/Upload"
MAX_PAGE_SIZE = 1000
# An upload holds one of few places and may not sit there for ever: a client may be waited for
# this long, and each byte of it earns that time back at this rate.
UPLOAD_SILENCE_S = 60.0
MIN_UPLOAD_BYTES_PER_S = 16 << 10


class AdaptersService(pb_grpc.AdaptersServicer):
    def __init__(self, front: Front) -> None:
        self._front = front

    @answering
    async def Upload(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadRequest], context: Context
    ) -> pb.Adapter:
        with self._front.open_call():
            return await self._receive(
                UploadParts(request_iterator, self._front.closing, self._front.clock), context
            )

    @answering
    async def Get(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:  # noqa: N802
        tenant = self._tenant(context)
        card = await self._front.registry.card(tenant, _name(request.name))
        (adapter,) = await self._with_residency((card,))
        return adapter

    @answering
    async def List(  # noqa: N802
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        if request.page_size > MAX_PAGE_SIZE:
            raise InvalidRequest(
                f"page_size is {request.page_size}; at most {MAX_PAGE_SIZE}",
                field="page_size",
            )
        page = await self._front.registry.page(
            self._tenant(context),
            prefix=request.prefix,
            limit=request.page_size or MAX_PAGE_SIZE,
            after=request.page_token,
        )
        return pb.ListAdaptersResponse(
            adapters=await self._with_residency(page.cards),
            next_page_token=page.next_after,
            total=page.total,
        )

    @answering
    async def Delete(  # noqa: N802
        self, request: pb.DeleteAdapterRequest, context: Context
    ) -> pb.DeleteAdapterResponse:
        key = await self._front.registry.delete(self._tenant(context), _name(request.name))
        return pb.DeleteAdapterResponse(version=key.version)

    @answering
    async def Prefetch(self, request: pb.PrefetchRequest, context: Context) -> pb.Adapter:  # noqa: N802
        wanted = read_wanted(request)
        name, tenant = _name(request.name), self._tenant(context)
        registry, engine = self._front.registry, self._front.engine
        with self._front.open_call():
            engine.require()
            card = await registry.resolve(tenant, name)
            # From here to the Prefetch nothing is waited for: the key may be forgotten meanwhile.
            memory, info = self._front.config.memory, engine.require()
            check_fits(card, memory, info, wanted)
            if wanted.pinned:
                check_pins(registry.pins.pages_with(card), memory, info)
                registry.pins.add(card)
            elif wanted.pinned is not None:
                registry.pins.remove((tenant, name))
            found = await engine.prefetch(card, to_pool=wanted.to_pool, pinned=wanted.pinned)
        return _adapter(card, found)

    async def _with_residency(self, cards: Sequence[AdapterCard]) -> list[pb.Adapter]:
        found: dict[AdapterKey, AdapterResidency] = {}
        if cards:
            # A card is worth telling although its place is not known.
            with suppress(EngineUnavailable, Draining):
                keys = [card.key for card in cards]
                found = {item.key: item for item in await self._front.engine.residency(keys)}
        return [_adapter(card, found.get(card.key)) for card in cards]

    def _tenant(self, context: Context) -> str:
        return self._front.access.caller(context).tenant

    async def _receive(self, parts: UploadParts, context: Context) -> pb.Adapter:
        tenant = self._tenant(context)
        header = await parts.header()
        limit = self._front.config.service.max_upload_bytes
        if header.size_bytes > limit:
            raise AdapterTooLarge(
                f"size_bytes is {header.size_bytes}; this server takes adapters of at most "
                f"{limit} bytes (--max-upload-bytes)",
                field="size_bytes",
                value=header.size_bytes,
                limit=limit,
                unit="bytes",
            )
        registry = self._front.registry
        upload_id = await registry.begin_upload(
            tenant,
            _name(header.name),
            config_json=header.config_json,
            size_bytes=header.size_bytes,
            sha256=header.sha256,
            base_fingerprint=header.base_fingerprint,
        )
        arrived = False
        try:
            async for data in parts.chunks(header.size_bytes):
                await registry.upload_chunk(upload_id, data)
            # An upload lasts: one whose token was revoked meanwhile stores nothing.
            self._front.access.admit(UPLOAD, context.invocation_metadata() or ())
            arrived = True
        finally:
            if not arrived:
                registry.abort_upload(upload_id)
        return _adapter((await registry.commit_upload(upload_id)).card)


class UploadParts:
    """What a client sends, in the order the wire asks for: one header, then the bytes."""

    def __init__(
        self, parts: AsyncIterator[pb.UploadRequest], closing: asyncio.Event, clock: Clock
    ) -> None:
        self._parts = parts
        self._closing = closing
        self._clock = clock
        self._patience_s = UPLOAD_SILENCE_S

    async def header(self) -> pb.UploadHeader:
        part = await self._next()
        if part is None or part.WhichOneof("part") != "header":
            found = "nothing" if part is None else part.WhichOneof("part") or "an empty message"
            raise InvalidRequest(
                f"an upload begins with its header; the first message holds {found}",
                field="header",
            )
        return part.header

    async def chunks(self, size_bytes: int) -> AsyncIterator[bytes]:
        """Raises:
        UploadCorrupt: not as many bytes as announced.
        """
        num_bytes = 0
        while (part := await self._next()) is not None:
            if part.WhichOneof("part") != "chunk":
                raise InvalidRequest(
                    "an upload has one header and then chunks only", field="header"
                )
            num_bytes += len(part.chunk)
            earned_s = len(part.chunk) / MIN_UPLOAD_BYTES_PER_S
            self._patience_s = min(self._patience_s + earned_s, UPLOAD_SILENCE_S)
            if num_bytes > size_bytes:
                raise UploadCorrupt(
                    f"size_bytes is {size_bytes}; {num_bytes} bytes have come and more follow",
                    field="size_bytes",
                )
            if part.chunk:
                yield part.chunk
        if num_bytes < size_bytes:
            raise UploadCorrupt(
                f"size_bytes is {size_bytes}; the upload ended after {num_bytes} bytes",
                field="size_bytes",
            )

    async def _next(self) -> pb.UploadRequest | None:
        """The next message; None at the end of the stream."""
        asked_s = self._clock.now_s()
        part = asyncio.ensure_future(anext(self._parts, None))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            done, _ = await asyncio.wait(
                (part, closing), timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            self._patience_s -= self._clock.now_s() - asked_s
            if part in done and self._patience_s > 0:
                return part.result()
            if closing in done:
                raise Draining(DRAINING)
            raise DeadlineExceeded(
                f"the upload is too slow: at most {UPLOAD_SILENCE_S:g} s without a byte, and "
                f"{MIN_UPLOAD_BYTES_PER_S} bytes a second",
                field="chunk",
            )
        finally:
            part.cancel()
            closing.cancel()


def _name(name: str) -> str:
    if not name:
        raise InvalidRequest("name is empty; it names an adapter", field="name")
    check_name(name)
    return name


def _adapter(card: AdapterCard, found: AdapterResidency | None = None) -> pb.Adapter:
    return pb.Adapter(
        name=card.key.name,
        version=card.key.version,
        content_hash=card.key.content_hash,
        size_bytes=card.size_bytes,
        max_rank=card.max_rank,
        num_pages=card.num_pages,
        weight_bytes=card.weight_bytes,
        target_modules=card.target_modules,
        created_unix_s=card.created_unix_s,
        notes=card.notes,
        rounding_error=card.rounding_error,
        residency=None if found is None else residency_message(found),
    )
