"""`Generation.Generate`: one prompt in, a stream of text out.

Translates and nothing else: checks the request, resolves the adapter, submits it once for each
answer, forwards what the engine says, and cancels when the client goes away or its deadline
passes. Knows neither pages nor plans, nor how an answer's text is made (answer.py).
"""

from __future__ import annotations

import logging
import math
from typing import assert_never, cast

from ...adapters.errors import AdapterLoadFailed
from ...adapters.key import AdapterCard
from ...adapters.names import check_name
from ...proto import lorry_pb2 as pb
from ...proto import lorry_pb2_grpc as pb_grpc
from ..errors import DeadlineExceeded
from ..seam import Finish, Progress, PromptLogprobs, Reject
from .answer import Answer, tpot_s
from .fanout import submits
from .front import Front
from .guard import Context, answering
from .logprobs import wire_prompt
from .prompt import PromptReader
from .request import Wish, complete, read_terms
from .request_stream import RequestStream
from .text import Text

requests_log = logging.getLogger("lorry.requests")


class GenerationService(pb_grpc.GenerationServicer):
    def __init__(self, front: Front) -> None:
        self._front = front
        self._prompts = PromptReader()

    @answering
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        arrived_s = self._front.clock.now_s()
        with self._front.open_generation():
            text = self._front.require_text()
            tenant = self._front.access.caller(context).tenant
            wish, card = await self._accept(request, text, tenant)
            # Nothing is waited for from here to the submission: the card stays current.
            engine = self._front.engine
            asked = submits(
                wish,
                [engine.next_request_id() for _ in range(wish.terms.num_answers)],
                tenant=tenant,
                card=card,
                timeout_s=_timeout_s(context),
            )
            stream = engine.submit(*asked)
            try:
                answers = {
                    submit.request_id: Answer(
                        index, submit, text=text, stops=wish.terms.stops, arrived_s=arrived_s
                    )
                    for index, submit in enumerate(asked)
                }
                await self._forward(stream, answers, text, context)
            finally:
                # All of them: one that was refused or failed takes the others with it.
                for submit in asked:
                    engine.cancel(submit.request_id)
                stream.close()

    async def _accept(
        self, request: pb.GenerateRequest, text: Text, tenant: str
    ) -> tuple[Wish, AdapterCard | None]:
        info = self._front.engine.require()
        if request.adapter:
            check_name(request.adapter, field="adapter")
        defaults = self._front.config.scheduling
        terms = read_terms(request, info=info, defaults=defaults)
        prompt_ids = await self._prompts.read(request, text, info)
        wish = complete(terms, request, prompt_ids, info=info, defaults=defaults)
        card = None
        if request.adapter:
            card = await self._front.registry.resolve(tenant, request.adapter)
        return wish, card

    async def _forward(
        self, stream: RequestStream, answers: dict[int, Answer], text: Text, context: Context
    ) -> None:
        """Until every answer has its final message."""
        num_open = len(answers)
        while num_open:
            event = await stream.next()
            answer = answers[event.request_id]
            match event:
                case Progress():
                    if (chunk := self._take(answer, event)) is not None:
                        await stream.reading(context.write(pb.GenerateResponse(chunk=chunk)))
                case PromptLogprobs():
                    for part in wire_prompt(event, text.token_bytes):
                        await stream.reading(context.write(part))
                case Finish():
                    for part in answer.end(event):
                        await stream.reading(context.write(part))
                    _log(answer, event)
                    num_open -= 1
                case Reject(_, error):
                    card = answer.submit.adapter
                    if isinstance(error, AdapterLoadFailed) and card is not None:
                        self._front.registry.load_failed(card.key)
                    raise error
                case _:
                    assert_never(event)

    def _take(self, answer: Answer, progress: Progress) -> pb.Chunk | None:
        chunk = answer.take(progress, self._front.clock.now_s())
        if chunk is not None and answer.stopped:  # before the client is waited for, and once
            self._front.engine.stop(progress.request_id)
        return chunk


def _timeout_s(context: Context) -> float:
    """Raises:
    DeadlineExceeded: nothing is left of the client's deadline.
    """
    # None without a deadline, which the stubs forget.
    remaining_s = cast("float | None", context.time_remaining())
    if remaining_s is None:
        return math.inf
    if remaining_s <= 0:
        raise DeadlineExceeded("the deadline passed before the request was queued")
    return remaining_s


def _log(answer: Answer, finish: Finish) -> None:
    adapter = answer.submit.adapter
    requests_log.info(
        "adapter=%s index=%d prompt_tokens=%d new_tokens=%d reason=%s preemptions=%d queue_s=%.4f "
        "load_s=%.4f ttft_s=%.4f tpot_s=%.4f start=%s",
        adapter.key if adapter else "-",
        answer.index,
        finish.num_prompt_tokens,
        finish.num_new_tokens,
        answer.reason(finish),
        finish.timings.num_preemptions,
        finish.timings.queue_s,
        finish.timings.load_s,
        answer.ttft_s,
        tpot_s(finish),
        finish.start.way.name.lower() if finish.start else "warm",
    )
