"""`Generation.Generate`: one prompt in, a stream of text out.

Translates and nothing else: checks the request, resolves the adapter, submits, forwards what
the engine says, and cancels when the client goes away or its deadline passes. Knows neither
pages nor plans.
"""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import assert_never, cast

from ...adapters.errors import AdapterLoadFailed
from ...adapters.key import DEFAULT_TENANT, AdapterCard
from ...adapters.names import check_name
from ...proto import lorry_pb2 as pb
from ...proto import lorry_pb2_grpc as pb_grpc
from ..errors import DeadlineExceeded
from ..seam import EngineInfo, Finish, Progress, Reject, Submit
from .engine_client import RequestStream
from .front import Front
from .guard import Context, answering
from .request import Wish, check_room, check_text, prompt_text, read_wish
from .text import Text

requests_log = logging.getLogger("lorry.requests")

# Below this a text is encoded on the loop: a thread would take longer.
SHORT_TEXT_CHARS = 2048

REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


@dataclass(slots=True)
class _Answer:
    """What one request is known by while it runs."""

    wish: Wish
    card: AdapterCard | None
    arrived_s: float
    ttft_s: float = 0.0


class GenerationService(pb_grpc.GenerationServicer):
    def __init__(self, front: Front) -> None:
        self._front = front
        # One: long texts wait for each other, not the loop for them, nor the pool of threads.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    @answering
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        arrived_s = self._front.clock.now_s()
        with self._front.open_call():
            text = self._front.require_text()
            answer = await self._accept(request, text, arrived_s)
            # Nothing is waited for from here to the submission: the card stays current.
            stream = self._submit(answer, context)
            try:
                await self._forward(stream, answer, text, context)
            finally:
                self._front.engine.cancel(stream.request_id)

    async def _accept(self, request: pb.GenerateRequest, text: Text, arrived_s: float) -> _Answer:
        info = self._front.engine.require()
        if request.adapter:
            check_name(request.adapter, field="adapter")
        prompt_ids = await self._prompt_ids(request, text, info)
        defaults = self._front.config.scheduling
        wish = read_wish(request, prompt_ids, info=info, defaults=defaults)
        card = None
        if request.adapter:
            card = await self._front.registry.resolve(DEFAULT_TENANT, request.adapter)
        return _Answer(wish, card, arrived_s)

    async def _prompt_ids(
        self, request: pb.GenerateRequest, text: Text, info: EngineInfo
    ) -> tuple[int, ...]:
        """No more than the context holds, however long the message is."""
        prompt = prompt_text(request)
        if prompt is None:
            check_room(len(request.token_ids.ids), info)
            return tuple(request.token_ids.ids)
        check_text(prompt, info=info, max_token_bytes=text.max_token_bytes)
        if len(prompt) < SHORT_TEXT_CHARS:
            return text.encode(prompt)
        loop = asyncio.get_running_loop()
        encoding = await loop.run_in_executor(self._encoder, text.encode_aside, prompt)
        check_room(len(encoding), info)
        return tuple(encoding.ids)

    def _submit(self, answer: _Answer, context: Context) -> RequestStream:
        # None without a deadline, which the stubs forget.
        remaining_s = cast("float | None", context.time_remaining())
        timeout_s = math.inf if remaining_s is None else remaining_s
        if timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request was queued")
        wish = answer.wish
        return self._front.engine.submit(
            Submit(
                request_id=self._front.engine.next_request_id(),
                tenant=DEFAULT_TENANT,
                adapter=answer.card,
                prompt_ids=wish.prompt_ids,
                max_new_tokens=wish.max_new_tokens,
                temperature=wish.temperature,
                seed=wish.seed,
                stop_ids=wish.stop_ids,
                ttft_s=wish.ttft_s,
                tpot_s=wish.tpot_s,
                timeout_s=timeout_s,
            )
        )

    async def _forward(
        self, stream: RequestStream, answer: _Answer, text: Text, context: Context
    ) -> None:
        pieces = text.stream()
        while True:
            event = await stream.next()
            match event:
                case Progress(_, token_ids):
                    if not answer.ttft_s:
                        answer.ttft_s = self._front.clock.now_s() - answer.arrived_s
                    chunk = pb.Chunk(text=pieces.push(token_ids), token_ids=token_ids)
                    await context.write(pb.GenerateResponse(chunk=chunk))
                case Finish():
                    if tail := pieces.finish():
                        await context.write(pb.GenerateResponse(chunk=pb.Chunk(text=tail)))
                    await context.write(pb.GenerateResponse(final=_final(answer, event)))
                    _log(answer, event)
                    return
                case Reject(_, error):
                    if isinstance(error, AdapterLoadFailed) and answer.card is not None:
                        self._front.registry.load_failed(answer.card.key)
                    raise error
                case _:
                    assert_never(event)


def _final(answer: _Answer, finish: Finish) -> pb.Final:
    timings = finish.timings
    return pb.Final(
        reason=REASONS.get(finish.reason, pb.FINISH_REASON_UNSPECIFIED),
        usage=pb.Usage(
            prompt_tokens=finish.num_prompt_tokens,
            completion_tokens=finish.num_new_tokens,
            preemptions=timings.num_preemptions,
        ),
        timing=pb.Timing(
            queue_s=timings.queue_s,
            load_s=timings.load_s,
            prefill_s=timings.prefill_s,
            ttft_s=answer.ttft_s,
            tpot_s=_tpot_s(finish),
        ),
        seed=answer.wish.seed,
        adapter_version=0 if answer.card is None else answer.card.key.version,
    )


def _tpot_s(finish: Finish) -> float:
    num_gaps = finish.num_new_tokens - 1
    return finish.timings.decode_s / num_gaps if num_gaps > 0 else 0.0


def _log(answer: _Answer, finish: Finish) -> None:
    requests_log.info(
        "adapter=%s prompt_tokens=%d new_tokens=%d reason=%s preemptions=%d queue_s=%.4f "
        "load_s=%.4f ttft_s=%.4f tpot_s=%.4f",
        answer.card.key if answer.card else "-",
        finish.num_prompt_tokens,
        finish.num_new_tokens,
        finish.reason,
        finish.timings.num_preemptions,
        finish.timings.queue_s,
        finish.timings.load_s,
        answer.ttft_s,
        _tpot_s(finish),
    )
