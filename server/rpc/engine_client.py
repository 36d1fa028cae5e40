"""The front end's half of the seam: streams of events out of one engine process.

Owns the pipe to the engine that is up now, the open streams and the unanswered questions.
When the engine dies each of them gets its answer here; the supervisor then calls `run` with
the pipe of the next one. Knows no gRPC and no plans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from ...adapters.key import AdapterCard, AdapterKey
from ..errors import LorryError
from ..seam import (
    AdapterResidency,
    AskResidency,
    AskStats,
    Cancel,
    EngineInfo,
    EngineStats,
    Finish,
    Forget,
    Prefetch,
    Progress,
    PromptLogprobs,
    Reject,
    Released,
    Report,
    ResidencyAnswer,
    Shutdown,
    StartFailed,
    StatsAnswer,
    Stop,
    Submit,
)
from .link import Ended, Outlook, PipeLink
from .request_stream import Backlog, RequestStream
from .totals import Totals

STATS_TIMEOUT_S = 10.0
PREFETCH_TIMEOUT_S = 10.0
# Where adapters are is told beside what is asked for: a busy engine is not waited for as long.
RESIDENCY_TIMEOUT_S = 2.0


class EngineClient:
    """All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        on_ready: Callable[[EngineInfo], None],
        on_released: Callable[[AdapterKey], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.info: EngineInfo | None = None  # None: not up
        self._on_ready = on_ready
        self._on_released = on_released
        self._on_lost = on_lost
        self._link: PipeLink | None = None
        self._streams: dict[int, RequestStream] = {}
        self.backlog = Backlog()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._totals = Totals()
        self.num_heard = 0  # messages, of all lives
        self._start_error: LorryError | None = None
        self._was_ready = False
        self.outlook: Callable[[], Outlook] = Outlook  # of the engine while it is down

    @property
    def num_open(self) -> int:
        return len(self._streams)

    async def run(self, conn: Connection) -> Ended:
        """Serves over this pipe until the engine is gone."""
        self._start_error, self._was_ready = None, False
        link = PipeLink(conn, name="engine", on_message=self._receive, fold=lambda all_: [all_])
        self._link = link
        try:
            await link.wait_closed()
        finally:
            self._lose()
        return Ended(self._start_error, self._was_ready)

    def require(self) -> EngineInfo:
        """Raises:
        EngineUnavailable: no engine is up; Draining: none will be.
        """
        if self.info is None:
            raise self._unavailable("the engine is not up; it is being started", tell_reason=True)
        return self.info

    def next_request_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def submit(self, *submits: Submit) -> RequestStream:
        """All of them or, when no engine is up, none."""
        self.require()
        stream = self.backlog.stream()
        for submit in submits:
            self._streams[submit.request_id] = stream
            self._send(submit)
        return stream

    def stop(self, request_id: int) -> None:
        """The answer is whole; its Finish is still waited for."""
        if request_id in self._streams:
            self._send(Stop(request_id))

    def cancel(self, request_id: int) -> None:
        """Forgets the stream at once; its late events are ignored."""
        if self._streams.pop(request_id, None) is not None:
            self._send(Cancel(request_id))

    def forget(self, key: AdapterKey) -> bool:
        """Whether an engine is up that will answer Released."""
        if self.info is None:
            return False
        self._send(Forget(key))
        return True

    def ask_for_life(self) -> None:
        """Whatever the engine says next is the answer; nobody waits for it here."""
        self._send(AskStats(self.next_request_id(), pages=False))

    async def stats(self, *, pages: bool) -> EngineStats:
        return await self._ask(
            AskStats(self.next_request_id(), pages), "gave no statistics", STATS_TIMEOUT_S
        )

    async def residency(self, keys: Sequence[AdapterKey]) -> tuple[AdapterResidency, ...]:
        """In the order of the keys."""
        question = AskResidency(self.next_request_id(), tuple(keys))
        return await self._ask(question, "did not say where adapters are", RESIDENCY_TIMEOUT_S)

    async def prefetch(
        self, card: AdapterCard, *, to_pool: bool, pinned: bool | None
    ) -> AdapterResidency:
        """Sent before anything is waited for, as a Submit is: see `Forget`."""
        question = Prefetch(self.next_request_id(), card, to_pool, pinned)
        (found,) = await self._ask(question, "did not answer a prefetch", PREFETCH_TIMEOUT_S)
        return found

    def pin(self, card: AdapterCard) -> bool:
        """Whether an engine is up that hears it; nobody waits for the answer."""
        if self.info is None:
            return False
        self._send(Prefetch(self.next_request_id(), card, to_pool=True, pinned=True))
        return True

    async def _ask(
        self, question: AskStats | AskResidency | Prefetch, failing: str, timeout_s: float
    ) -> Any:
        """What the engine answers; `failing`: what it did instead, in an error's words."""
        self.require()
        answer = asyncio.get_running_loop().create_future()
        self._questions[question.query_id] = answer
        self._send(question)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise self._unavailable(f"the engine {failing} within {timeout_s:g} s") from error
        finally:
            self._questions.pop(question.query_id, None)

    def _answer(self, query_id: int, value: object) -> None:
        answer = self._questions.get(query_id)
        if answer is not None and not answer.done():
            answer.set_result(value)

    def reject_all(self, error: LorryError) -> None:
        """Ends every open request with this; the engine is told to drop them."""
        for request_id, stream in list(self._streams.items()):
            self.cancel(request_id)
            stream.put(Reject(request_id, error))

    def shut_down(self) -> None:
        self._send(Shutdown())

    def hang_up(self) -> None:
        if self._link is not None:
            self._link.hang_up()

    def _send(self, command: object) -> None:
        if self._link is not None:
            self._link.send(command)

    def _receive(self, message: Any) -> None:
        self.num_heard += 1
        match message:
            case Report(events):
                for event in events:
                    self._take(event)
            case EngineInfo():
                self.info = message
                self._was_ready = True
                self._on_ready(message)
            case StartFailed(error):
                self._start_error = error
            case _:
                raise TypeError(f"no message of the seam: {type(message).__name__}")

    def _take(self, event: Any) -> None:
        match event:
            case Progress(request_id=request_id) | PromptLogprobs(request_id=request_id):
                if (stream := self._streams.get(request_id)) is not None:
                    stream.put(event)
            case Finish(request_id=request_id) | Reject(request_id=request_id):
                if (stream := self._streams.pop(request_id, None)) is not None:
                    stream.put(event)
            case Released(key):
                self._on_released(key)
            case StatsAnswer(query_id, stats):
                self._answer(query_id, self._totals.heard(stats))
            case ResidencyAnswer(query_id, adapters):
                self._answer(query_id, adapters)
            case _:
                raise TypeError(f"no event of the seam: {type(event).__name__}")

    def _lose(self) -> None:
        self._link = None
        self.info = None
        self._totals.engine_lost(len(self._streams))
        error = self._unavailable("the engine stopped; it is being restarted")
        for request_id, stream in self._streams.items():
            stream.put(Reject(request_id, error))
        self._streams.clear()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(error)
        self._on_lost()

    def _unavailable(self, message: str, *, tell_reason: bool = False) -> LorryError:
        outlook = self.outlook()
        if tell_reason and outlook.reason:
            message += f" (its last life ended: {outlook.reason})"
        return outlook.error(message)
