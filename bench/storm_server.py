"""A server to be stormed: its processes by name, what they hold, and ways to hurt them.

Reads /proc, so Linux only. Knows no client and no request. Used by storm.py and its tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..proto.async_client import AsyncClient
from ..proto.errors import DeadlineExceeded, LorryClientError, Unavailable
from ..server.children import ENGINE_NAME, STORE_NAME

PATIENCE_S = 120.0  # for what must happen: longer is a hang
LOOK_EVERY_S = 0.01


class Hung(Exception):
    """Something that must happen has not."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds of the system."""

    descriptors: int
    threads: int
    rss_bytes: int


def held_by(pid: int) -> Held:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return Held(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
        rss_bytes=int(status["VmRSS"].split()[0]) << 10,
    )


def descendants(pid: int) -> list[int]:
    """Of all generations that live; empty when the process is gone."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:
        return found  # it ended while we looked
    return found


def is_alive(pid: int) -> bool:
    """A process that has ended and was not waited for is dead too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def find_child(front_pid: int, name: str) -> int | None:
    """The living descendant that calls itself so."""
    for pid in descendants(front_pid):
        try:
            found = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if found == name and is_alive(pid):
            return pid
    return None


async def until(happened: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Raises:
    Hung: it has not happened.
    """
    end_s = time.perf_counter() + patience_s
    while not happened():
        if time.perf_counter() > end_s:
            raise Hung(f"{what}: not within {patience_s:g} s")
        await asyncio.sleep(LOOK_EVERY_S)


class Victim:
    """The server under storm."""

    def __init__(self, address: str, front_pid: int) -> None:
        self.address = address
        self.front_pid = front_pid
        # When something was down that requests need: [from, to), open while it lasts.
        self._down_s: list[list[float]] = []
        self.ready_again_s: list[float] = []  # from each kill of the engine
        self.store_again_s: list[float] = []

    def pid_of(self, name: str) -> int | None:
        return find_child(self.front_pid, name)

    def was_down_since(self, start_s: float) -> bool:
        """Whether a request that began then may say UNAVAILABLE now."""
        return any(end_s >= start_s for _, end_s in self._down_s)

    async def kill_engine(self, client: AsyncClient) -> None:
        """Returns when the next one serves."""
        num_restarts = (await client.stats()).engine_restarts_total

        async def is_back() -> bool:
            return (await client.stats()).engine_restarts_total > num_restarts

        self.ready_again_s.append(await self._kill(ENGINE_NAME, is_back))

    async def kill_store(self, client: AsyncClient) -> None:
        old = self.pid_of(STORE_NAME)

        async def is_back() -> bool:
            new = self.pid_of(STORE_NAME)
            if new is None or new == old:
                return False
            async for _ in client.adapters.list(page_size=1):
                break
            return True

        self.store_again_s.append(await self._kill(STORE_NAME, is_back))

    async def freeze_engine(self, seconds: float) -> None:
        """As a machine that swaps: nobody is to notice but by the time it takes."""
        pid = self.pid_of(ENGINE_NAME)
        if pid is None:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def hang_engine(self, client: AsyncClient) -> float:
        """Stops it for good; seconds until the watchdog has put another in its place."""
        num_restarts = (await client.stats()).engine_restarts_total

        async def is_back() -> bool:
            return (await client.stats()).engine_restarts_total > num_restarts

        return await self._kill(ENGINE_NAME, is_back, signal.SIGSTOP, patience_s=300.0)

    async def _kill(
        self,
        name: str,
        is_back: Callable[[], object],
        number: int = signal.SIGKILL,
        *,
        patience_s: float = PATIENCE_S,
    ) -> float:
        """Seconds until it was back."""
        pid = self.pid_of(name)
        if pid is None:
            raise Hung(f"no process {name} to kill")
        start_s = time.perf_counter()
        down = [start_s, float("inf")]
        self._down_s.append(down)
        os.kill(pid, number)
        while not await _holds(is_back):
            if time.perf_counter() > start_s + patience_s:
                raise Hung(f"{name} was not back {patience_s:g} s after signal {number}")
            await asyncio.sleep(LOOK_EVERY_S)
        down[1] = time.perf_counter()
        return down[1] - start_s


async def _holds(condition: Callable[[], object]) -> bool:
    """Not while the server cannot say."""
    try:
        answer = condition()
        return bool(await answer if asyncio.iscoroutine(answer) else answer)
    except (Unavailable, DeadlineExceeded):
        return False
    except LorryClientError as error:
        raise Hung(f"asked whether it is back: {error}") from error
