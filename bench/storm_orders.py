"""Deaths in every order: of the engine while it starts, twice in a row, with the store, in a drain.

Each order begins and ends with processes of its own, and none of them may outlive it. A helper of
storm.py, on servers that the storm itself does not need.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ..proto.async_client import AsyncClient
from ..proto.errors import LorryClientError, Unavailable
from ..server.children import ENGINE_NAME, STORE_NAME
from .server_process import lorry_command
from .storm_asks import ZOO_DIR, Ask, Scene
from .storm_server import Hung, descendants, find_child, is_alive, until

START_S = 120.0
LEAVE_S = 15.0  # for children whose front end is gone


class Doomed:
    """A server that is watched from before it is up."""

    def __init__(self, store: Path, flags: Sequence[str]) -> None:
        command = lorry_command(
            *("serve", "--model", str(ZOO_DIR / "base"), "--store", str(store), "--port", "0"),
            *flags,
        )
        self._log = store.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.known: set[int] = set()  # processes it ever had

    def look(self) -> None:
        """Remember whom it has: once it is gone, nobody can tell whose its children were."""
        self.known |= set(descendants(self.process.pid))

    def engine(self) -> int | None:
        self.look()
        return find_child(self.process.pid, ENGINE_NAME)

    def store(self) -> int | None:
        return find_child(self.process.pid, STORE_NAME)

    async def new_engine(self, old: int | None = None) -> int:
        """The next one, the moment it is there; it is not up yet."""
        await until(lambda: self.engine() not in (None, old), "an engine", START_S)
        pid = self.engine()
        if pid is None:
            raise Hung("the engine ended while it started")
        return pid

    async def address(self) -> str:
        await until(lambda: "lorry ready on" in self._said(), "ready", START_S)
        return self._said().rpartition("lorry ready on ")[2].split()[0]

    async def leave(self) -> None:
        """Its children go when it is gone, however it went."""
        await until(lambda: self.process.poll() is not None, "the front end's end", START_S)
        await until(
            lambda: not any(is_alive(pid) for pid in self.known), "the children's end", LEAVE_S
        )

    def end(self) -> None:
        self.look()
        for pid in (self.process.pid, *self.known):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _said(self) -> str:
        return self._log.read_text(errors="replace")


async def engine_killed_at_start(doomed: Doomed, scene: Scene) -> None:
    os.kill(await doomed.new_engine(), signal.SIGKILL)
    await _answers(doomed, scene)


async def engine_killed_twice_in_a_row(doomed: Doomed, scene: Scene) -> None:
    await doomed.address()
    first = await doomed.new_engine()
    os.kill(first, signal.SIGKILL)
    second = await doomed.new_engine(first)
    os.kill(second, signal.SIGKILL)
    await doomed.new_engine(second)
    await _answers(doomed, scene)


async def engine_and_store_killed_together(doomed: Doomed, scene: Scene) -> None:
    await doomed.address()
    store = doomed.store()
    os.kill(await doomed.new_engine(), signal.SIGKILL)
    if store is not None:
        os.kill(store, signal.SIGKILL)
    await _answers(doomed, scene)


async def engine_killed_in_a_drain(doomed: Doomed, scene: Scene) -> None:
    ask = _long(scene)
    async with AsyncClient(await doomed.address()) as client:
        stream = client.generate(ask.prompt, max_new_tokens=ask.max_new_tokens, ignore_eos=True)
        async with stream:
            await anext(aiter(stream))
            engine = await doomed.new_engine()
            os.kill(engine, signal.SIGSTOP)  # else it may be done before it is killed
            doomed.process.send_signal(signal.SIGTERM)
            os.kill(engine, signal.SIGKILL)
            try:
                async for _ in stream:
                    pass
            except Unavailable:
                pass
            else:
                raise Hung("a stream ended well whose engine was killed")
    await _left_with(doomed, 0)


async def told_to_stop_at_start(doomed: Doomed, scene: Scene) -> None:
    await doomed.new_engine()
    doomed.process.send_signal(signal.SIGTERM)
    await _left_with(doomed, 0)


async def front_end_killed_at_start(doomed: Doomed, scene: Scene) -> None:
    await doomed.new_engine()
    doomed.process.kill()
    await doomed.leave()


async def front_end_killed_under_load(doomed: Doomed, scene: Scene) -> None:
    ask = _long(scene)
    async with AsyncClient(await doomed.address()) as client:
        stream = client.generate(ask.prompt, max_new_tokens=ask.max_new_tokens, ignore_eos=True)
        async with stream:
            await anext(aiter(stream))
            await doomed.new_engine()
            doomed.process.kill()
            try:
                async for _ in stream:
                    pass
            except LorryClientError:
                pass
    await doomed.leave()


ORDERS: tuple[Callable[[Doomed, Scene], Awaitable[None]], ...] = (
    engine_killed_at_start,
    engine_killed_twice_in_a_row,
    engine_and_store_killed_together,
    engine_killed_in_a_drain,
    told_to_stop_at_start,
    front_end_killed_at_start,
    front_end_killed_under_load,
)


async def play_orders(scene: Scene, flags: Sequence[str]) -> dict[str, str]:
    """Each order by name: "ok", or what went wrong."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="lorry-orders-") as home:
        for order in ORDERS:
            name = getattr(order, "__name__", "")
            doomed = Doomed(Path(home) / name, flags)
            try:
                await order(doomed, scene)
                found[name] = "ok"
            except (Hung, LorryClientError) as error:
                found[name] = f"{type(error).__name__}: {error}"
            finally:
                doomed.end()
    return found


async def _answers(doomed: Doomed, scene: Scene) -> None:
    """It serves in the end, rightly, and leaves when told."""
    ask = _long(scene)
    async with AsyncClient(await doomed.address()) as client:
        while True:
            try:
                answer = await client.complete(
                    ask.prompt, max_new_tokens=ask.max_new_tokens, ignore_eos=True, timeout_s=60
                )
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        if answer.token_ids != ask.tokens:
            raise Hung(f"said {answer.token_ids}, {ask.tokens} is right")
    doomed.look()  # those that came after the killed ones
    doomed.process.send_signal(signal.SIGTERM)
    await _left_with(doomed, 0)


async def _left_with(doomed: Doomed, code: int) -> None:
    await doomed.leave()
    if doomed.process.returncode != code:
        raise Hung(f"it ended with code {doomed.process.returncode}, not {code}")


def _long(scene: Scene) -> Ask:
    return next(ask for ask in scene.of("") if ask.is_long)
