"""One pipe to a child process, as the event loop sees it.

A reader thread hands each message to the loop; a writer thread sends what waits, folded into
as few messages as the caller's `fold` makes of it, so that the loop never blocks on a slow
child. Knows no message's meaning; used by the engine's and the store's clients.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..errors import Draining, EngineUnavailable, LorryError

DRAINING = "the server is stopping and takes no new work; ask another"

# A child that dies while it writes leaves a message cut short: to us, the same as silence.
_LOST = (EOFError, OSError, pickle.UnpicklingError)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child's service over one pipe ended."""

    error: LorryError | None  # its reason when it could not start
    was_ready: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """What clients are told of a child that is down."""

    retry_after_s: float = 1.0  # about when it is back
    reason: str = ""  # why its last life ended; empty: it had none
    rests: bool = False  # the server stops: no next life is coming

    def error(self, message: str) -> EngineUnavailable | Draining:
        """What a call that needs the child ends with; `message` promises its next life."""
        if self.rests:
            return Draining(DRAINING)
        return EngineUnavailable(message, retry_after_s=self.retry_after_s)


class PipeLink:
    """`on_message` and `closed` happen on the loop that made the link."""

    def __init__(
        self,
        conn: Connection,
        *,
        name: str,
        on_message: Callable[[Any], None],
        fold: Callable[[list[Any]], list[Any]],
    ) -> None:
        self._conn = conn
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._fold = fold
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = asyncio.Event()
        self._reader = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"{name}-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def send(self, message: object) -> None:
        """Never blocks; to a lost child it does nothing, `closed` has said so."""
        self._outbox.put(message)

    def hang_up(self) -> None:
        """Both sides read the end of the pipe; what was written before still arrives."""
        self._outbox.put(None)

    async def wait_closed(self) -> None:
        """Returns when the child is gone, after its last message was handed on."""
        await self.closed.wait()
        self._outbox.put(None)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        self._reader.join()
        self._writer.join()
        self._conn.close()

    def _read(self) -> None:
        try:
            while self._hand_over(self._on_message, self._conn.recv()):
                pass
        except _LOST:
            pass
        finally:
            self._hand_over(self.closed.set)

    def _hand_over(self, call: Callable[..., object], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return False  # the loop is closed: nobody is left to hear it
        return True

    def _write(self) -> None:
        while (waiting := self._take()) is not None:
            try:
                for message in self._fold(waiting):
                    self._conn.send(message)
            except OSError:
                return  # the reader tells of the loss
        self._shut()

    def _take(self) -> list[Any] | None:
        """All that waits, at least one; None once hung up."""
        taken = [self._outbox.get()]
        while not self._outbox.empty():
            taken.append(self._outbox.get())
        if None not in taken:
            return taken
        rest = taken[: taken.index(None)]
        if not rest:
            return None
        self._outbox.put(None)
        return rest

    def _shut(self) -> None:
        # Closing a descriptor under a blocked read wakes nobody; shutting the socket down does.
        try:
            with socket.socket(fileno=os.dup(self._conn.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the child was faster
