"""What clients do to a server in a storm: leave, run out of time, die, cut uploads, take away.

One event is one client's misfortune or misdeed, drawn from a seed; what it hears is judged on the
spot: every token against the right answer, every error by whether it is one of those that the event
allows. Knows no processes of the server; played by storm.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from ..proto import lorry_pb2 as pb
from ..proto import lorry_pb2_grpc as pb_grpc
from ..proto.async_client import AsyncClient, AsyncTextStream
from ..proto.errors import LorryClientError, NotFound, from_rpc
from ..proto.parcel import Parcel
from .storm_asks import Ask, Scene, is_start_of
from .storm_relay import Relay
from .storm_server import PATIENCE_S, Victim

WHOLE = "whole and right"
LEFT = "left"  # this client went before the end; what it had was right
UNAVAILABLE = "UNAVAILABLE"
ENDED_WORDS = "Internal error from Core"
# Shares of client events, in parts of their sum.
SHARES = {
    "cancel before the first token": 18,
    "cancel in the middle": 18,
    "cancel at the end": 13,
    "deadline": 20,
    "channel closed": 8,
    "socket torn": 8,
    "client killed": 4,
    "upload cut": 6,
    "adapter deleted in use": 3,
    "adapter replaced in use": 3,
}


class Wrong(Exception):
    """The server said what it must not."""


@dataclass(frozen=True, slots=True)
class Event:
    """Repeatable as far as it depends on us."""

    idx: int
    kind: str
    ask: Ask
    fraction: float  # 0 to 1: how far, or how long, of what the kind is about

    def __str__(self) -> str:
        where = self.ask.adapter or "base"
        return f"event {self.idx}, {self.kind} at {self.fraction:.3f} of {where} {self.ask.prompt}"


def draw_events(rng: random.Random, scene: Scene, num: int) -> list[Event]:
    kinds = rng.choices(list(SHARES), weights=list(SHARES.values()), k=num)
    # Each kind at least once, however short the storm is.
    for place, kind in zip(rng.sample(range(num), min(num, len(SHARES))), SHARES, strict=False):
        kinds[place] = kind
    long = [ask for ask in scene.asks if ask.is_long]
    pools = {True: long, False: list(scene.asks)}
    return [
        Event(i, kind, rng.choice(pools[kind != "deadline" and rng.random() < 0.5]), rng.random())
        for i, kind in enumerate(kinds)
    ]


class Clients:
    """Plays events against one server, each as a client of its own would."""

    def __init__(self, victim: Victim, scene: Scene, client: AsyncClient) -> None:
        self._victim = victim
        self._scene = scene
        self._client = client
        self._usual_s = 0.5  # of a whole answer, smoothed
        self._kinds: dict[str, Callable[[Event], Awaitable[str]]] = {
            "cancel before the first token": self._cancel_early,
            "cancel in the middle": self._cancel_middle,
            "cancel at the end": self._cancel_end,
            "deadline": self._deadline,
            "channel closed": self._channel_closed,
            "socket torn": self._socket_torn,
            "client killed": self._client_killed,
            "upload cut": self._upload_cut,
            "adapter deleted in use": self._deleted,
            "adapter replaced in use": self._replaced,
        }

    async def play(self, event: Event) -> str:
        """What became of it.

        Raises:
            Wrong: what must not become of it.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._kinds[event.kind](event)
        except TimeoutError:
            raise Wrong(f"{event}: hangs after {PATIENCE_S:g} s") from None
        except Wrong as wrong:
            raise Wrong(f"{event}: {wrong}") from wrong

    async def ask(self, ask: Ask) -> str:
        """A client that only wants its answer."""
        start_s = time.perf_counter()
        outcome = await self._hear(self._client, ask)
        if outcome == WHOLE:
            self._usual_s += 0.1 * (time.perf_counter() - start_s - self._usual_s)
        return outcome

    async def _hear(
        self,
        client: AsyncClient,
        ask: Ask,
        *,
        num_tokens: int | None = None,
        allowed: tuple[str, ...] = (),
        leave: Callable[[AsyncTextStream], Awaitable[None]] | None = None,
        timeout_s: float = PATIENCE_S,
        adapter: str | None = None,
    ) -> str:
        """Listens to the end, or to so many tokens and then leaves in the given way."""
        start_s = time.perf_counter()
        stream = client.generate(ask.prompt, timeout_s=timeout_s, **self._options(ask, adapter))
        try:
            async with stream:
                if num_tokens != 0:
                    async for _ in stream:
                        if num_tokens is not None and len(stream.token_ids) >= num_tokens:
                            break
                if num_tokens is not None and leave is not None:
                    await leave(stream)
                    return LEFT
                got = stream.final.token_ids
        except LorryClientError as error:
            return self._judge_error(error, stream.token_ids, ask, start_s, allowed)
        finally:
            if not is_start_of(stream.token_ids, ask):
                raise Wrong(f"said {stream.token_ids}, {ask.tokens} is right")
        if got != ask.tokens:
            raise Wrong(f"said {got} and no more, {ask.tokens} is right")
        return WHOLE

    def _options(self, ask: Ask, adapter: str | None) -> Any:
        return {
            "adapter": ask.adapter if adapter is None else adapter,
            "max_new_tokens": ask.max_new_tokens,
            "ignore_eos": ask.ignore_eos,
        }

    def _judge_error(
        self,
        error: LorryClientError,
        tokens: tuple[int, ...],
        ask: Ask,
        start_s: float,
        allowed: tuple[str, ...],
    ) -> str:
        if error.code in allowed:
            return error.code
        if error.code == UNAVAILABLE and self._victim.was_down_since(start_s):
            if error.retry_after_s is None:
                raise Wrong(f"UNAVAILABLE without a time to come back: {error}")
            return UNAVAILABLE
        raise Wrong(f"{error.code} after {len(tokens)} of {len(ask.tokens)} tokens: {error}")

    async def _cancel_early(self, event: Event) -> str:
        async def leave(stream: AsyncTextStream) -> None:
            await asyncio.sleep(0.2 * event.fraction**3)
            stream.close()

        return await self._hear(self._client, event.ask, num_tokens=0, leave=leave)

    async def _cancel_middle(self, event: Event) -> str:
        num = 1 + int(event.fraction * (len(event.ask.tokens) - 2))
        return await self._hear(self._client, event.ask, num_tokens=num, leave=_close)

    async def _cancel_end(self, event: Event) -> str:
        num = len(event.ask.tokens) - int(2 * event.fraction)
        return await self._hear(self._client, event.ask, num_tokens=num, leave=_close)

    async def _deadline(self, event: Event) -> str:
        timeout_s = 1.6 * event.fraction * self._usual_s
        return await self._hear(
            self._client, event.ask, timeout_s=timeout_s, allowed=("DEADLINE_EXCEEDED",)
        )

    async def _channel_closed(self, event: Event) -> str:
        client = AsyncClient(self._victim.address)

        async def leave(stream: AsyncTextStream) -> None:
            await client.close()

        num = int(event.fraction * (len(event.ask.tokens) - 1))
        try:
            return await self._hear(client, event.ask, num_tokens=num, leave=leave)
        finally:
            await client.close()

    async def _socket_torn(self, event: Event) -> str:
        """The connection goes through a relay of ours, which breaks it off without a word."""
        async with Relay(self._victim.address) as relay, AsyncClient(relay.address) as client:

            async def leave(stream: AsyncTextStream) -> None:
                relay.tear()

            num = int(event.fraction * (len(event.ask.tokens) - 1))
            # A relay that is slow to connect is no fault of the server's.
            return await self._hear(
                client, event.ask, num_tokens=num, leave=leave, allowed=(UNAVAILABLE,)
            )

    async def _client_killed(self, event: Event) -> str:
        options = {"prompt": event.ask.prompt, **self._options(event.ask, None)}
        command = ["-P", "-m", "lorry.bench.storm_client", self._victim.address]
        start_s, ended = time.perf_counter(), False
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            json.dumps(options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None  # asked for
        try:
            for _ in range(1 + int(event.fraction * (len(event.ask.tokens) - 1))):
                if not await process.stdout.readline():
                    ended = True
                    break
        finally:
            if process.returncode is None and not ended:
                process.kill()
            await process.communicate()
        # One that was not there to be killed has failed, unless its server had.
        if ended and process.returncode and not self._victim.was_down_since(start_s):
            raise Wrong(f"a client ended by itself with code {process.returncode}")
        return LEFT

    async def _upload_cut(self, event: Event) -> str:
        """Ends early, in words or by going away; nothing of it may be there afterwards."""
        name = f"cut-{event.idx}"
        folder = self._scene.folders[event.ask.adapter or next(iter(self._scene.folders))]
        start_s = time.perf_counter()
        outcome = await self._cut(Parcel(folder, name), event.fraction, start_s)
        try:
            await self._client.adapters.get(name)
        except NotFound:
            return outcome
        except LorryClientError as error:
            return self._judge_error(error, (), event.ask, start_s, ())
        raise Wrong(f"half an upload is there as {name}")

    async def _cut(self, parcel: Parcel, fraction: float, start_s: float) -> str:
        data = parcel.weights_path.read_bytes()
        data = data[: int(fraction * (len(data) - 1))]
        goes_away = fraction < 0.5

        async with grpc.aio.insecure_channel(self._victim.address) as channel:
            stub: Any = pb_grpc.AdaptersStub(channel)
            call = stub.Upload(timeout=PATIENCE_S)
            try:
                await call.write(pb.UploadRequest(header=parcel.header))
                await call.write(pb.UploadRequest(chunk=data))
                if goes_away:
                    call.cancel()
                    return LEFT
                await call.done_writing()
                await call
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure, self._victim.address)
                if error.code == "INVALID_ARGUMENT":
                    return error.code
                # gRPC says INTERNAL of a write to a call that the server has ended already.
                ended = error.code == UNAVAILABLE or ENDED_WORDS in error.message
                if ended and self._victim.was_down_since(start_s):
                    return UNAVAILABLE
                raise Wrong(f"a cut upload got {error.code}: {error}") from failure
            except asyncio.InvalidStateError:
                return UNAVAILABLE  # the call had ended before all was written
        raise Wrong("a cut upload was taken")

    async def _deleted(self, event: Event) -> str:
        """Who runs on it gets the whole answer, who comes later gets NOT_FOUND."""
        return await self._taken_away(event, replace=False)

    async def _replaced(self, event: Event) -> str:
        """Who runs on it gets the old answer, who comes later gets the new."""
        return await self._taken_away(event, replace=True)

    async def _taken_away(self, event: Event, *, replace: bool) -> str:
        name = f"gone-{event.idx}"
        old = event.ask if event.ask.adapter else self._other(event.ask)
        new = self._other(old)
        start_s = time.perf_counter()
        began = asyncio.Event()
        adapters = self._client.adapters
        try:
            await adapters.upload(self._scene.folders[old.adapter], name)
            running = asyncio.create_task(self._hear_begun(old, name, began))
            try:
                await began.wait()
                if replace:
                    await adapters.upload(self._scene.folders[new.adapter], name)
                    outcome = await self._hear(self._client, new, adapter=name)
                else:
                    await adapters.delete(name)
                    outcome = await self._hear(
                        self._client, old, adapter=name, allowed=("NOT_FOUND",)
                    )
                    if outcome == WHOLE:
                        raise Wrong(f"{name} answers after it was deleted")
            finally:
                first = await running
            return outcome if first == WHOLE else first
        except LorryClientError as error:
            return self._judge_error(error, (), old, start_s, ())
        finally:
            await self._remove(name)

    async def _hear_begun(self, ask: Ask, name: str, began: asyncio.Event) -> str:
        """Sets `began` at the first token, and also when there will be none."""
        stream = self._client.generate(ask.prompt, timeout_s=PATIENCE_S, **self._options(ask, name))
        start_s = time.perf_counter()
        try:
            async with stream:
                async for _ in stream:
                    began.set()
        except LorryClientError as error:
            return self._judge_error(error, stream.token_ids, ask, start_s, ())
        finally:
            began.set()
        if stream.token_ids != ask.tokens:
            raise Wrong(f"said {stream.token_ids}, {ask.tokens} is right")
        return WHOLE

    def _other(self, ask: Ask) -> Ask:
        """An ask of another adapter; always the same for the same one."""
        others = [a for a in self._scene.asks if a.adapter not in ("", ask.adapter)]
        return others[len(ask.tokens) % len(others)]

    async def _remove(self, name: str) -> None:
        """Whatever the storm left of it; what a dead store kept is deleted at the end of all."""
        with contextlib.suppress(LorryClientError):
            await self._client.adapters.delete(name)


async def _close(stream: AsyncTextStream) -> None:
    stream.close()
