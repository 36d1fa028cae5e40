"""The engine's two ends of the seam: over a pipe for the server, over a queue for tests.

Both honour `seam.EngineEnd`. A waiter is woken by a command, by `wake()` from a loader
thread, or by the other side's death. Knows no message's meaning; the front end's half of
the pipe is `rpc/engine_client.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
from multiprocessing.connection import Connection, wait

from .seam import Command, Report


class PipeEnd:
    """Commands as `list[Command]` and reports over one duplex connection."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def receive(self, timeout_s: float) -> list[Command]:
        timeout = None if math.isinf(timeout_s) else timeout_s
        ready = wait([self._conn, self._wake_read], timeout)
        if self._wake_read in ready:
            self._clear_wakes()
        commands: list[Command] = []
        try:
            while self._conn.poll(0):
                commands.extend(self._conn.recv())
        except ConnectionError as error:  # killed with our reports unread
            raise EOFError from error
        return commands

    def send(self, report: Report) -> None:
        self._conn.send(report)

    def wake(self) -> None:
        # A full pipe is full of wakes already: the waiter cannot miss this one.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _clear_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass


class LocalEnd:
    """The same face in one process: a test puts commands in and takes reports out."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()

    def receive(self, timeout_s: float) -> list[Command]:
        commands: list[Command] = []
        try:
            timeout = None if math.isinf(timeout_s) else timeout_s
            command = self.commands.get(block=timeout_s > 0, timeout=timeout)
            while True:
                if command is not None:
                    commands.append(command)
                command = self.commands.get_nowait()
        except queue.Empty:
            return commands

    def send(self, report: Report) -> None:
        self.reports.put(report)

    def wake(self) -> None:
        self.commands.put(None)
