"""The server's two child processes: how they begin and how they end.

Owns spawning, the pipe's descriptors and the last resort (kill). A child holds nothing but
its end of the pipe: when the front end dies in any way, it reads the end of it and leaves.
Knows no message. Used by the supervisor; `Child` is what its tests put in place of a process.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .config import ServerConfig

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Child(Protocol):
    """`conn` is our end of its pipe."""

    @property
    def conn(self) -> Connection: ...

    def end(self, patience_s: float) -> int | None:
        """Waits, then kills; the exit code, negative for a signal. Blocks."""
        ...

    def kill(self) -> None: ...


class ProcessChild:
    """`entry` is imported by name in a fresh interpreter: no state of ours is inherited."""

    def __init__(self, name: str, entry: Callable[..., None], config: ServerConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.conn, theirs = context.Pipe()
        self._process = context.Process(target=entry, args=(theirs, config), name=name)
        self._process.start()
        theirs.close()  # else the pipe would not end with the child

    def end(self, patience_s: float) -> int | None:
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def spawn_engine(config: ServerConfig) -> Child:
    return ProcessChild("lorry-engine", engine_main, config)


def spawn_store(config: ServerConfig) -> Child:
    return ProcessChild("lorry-store", store_main, config)


def engine_main(conn: Connection, config: ServerConfig) -> None:
    """Runs in the engine's process."""
    _prepare()
    from .engine_process import run_engine

    run_engine(conn, config)


def store_main(conn: Connection, config: ServerConfig) -> None:
    """Runs in the store worker's process."""
    _prepare()
    from ..adapters.limits import StoreLimits
    from .store_worker import run_store_worker

    limits = StoreLimits(
        max_upload_bytes=config.service.max_upload_bytes, max_rank=config.memory.max_rank
    )
    run_store_worker(conn, config.service.store, config.model.model, limits)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    logging.getLogger("lorry").setLevel(logging.INFO)


def _prepare() -> None:
    # A Ctrl-C or a service manager's SIGTERM reaches the whole group; the front end drains
    # first and then tells its children.
    ignored: Any = signal.SIG_IGN
    signal.signal(signal.SIGINT, ignored)
    signal.signal(signal.SIGTERM, ignored)
    log_to_stderr()
