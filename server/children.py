"""The server's two child processes: how they begin and how they end.

Owns spawning, the pipe's descriptors and the last resort (kill). A child holds nothing but
its end of the pipe: when the front end dies in any way, it reads the end of it and leaves.
Knows no message. Used by the supervisor; `Child` is what its tests put in place of a process.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from .config import ServerConfig

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
ENGINE_NAME, STORE_NAME = "lorry-engine", "lorry-store"  # at most 15 bytes
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Child(Protocol):
    """`conn` is our end of its pipe."""

    @property
    def conn(self) -> Connection: ...

    def end(self, patience_s: float) -> int | None:
        """Waits, then kills; the exit code, negative for a signal. Blocks."""
        ...

    def kill(self) -> None: ...

    def work(self) -> int | None:
        """Grows while it computes, in any unit; None where the system does not tell."""
        ...


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

    def work(self) -> int | None:
        """Ticks of the processor, in user code and in the kernel."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return None
        # The second field is the program's name in brackets, which may hold spaces.
        after_name = stat.rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])


def spawn_engine(config: ServerConfig) -> Child:
    return ProcessChild(ENGINE_NAME, engine_main, config)


def spawn_store(config: ServerConfig) -> Child:
    return ProcessChild(STORE_NAME, store_main, config)


def engine_main(conn: Connection, config: ServerConfig) -> None:
    """Runs in the engine's process."""
    prepare_engine()
    from .engine_process import run_engine

    run_engine(conn, config)


def store_main(conn: Connection, config: ServerConfig) -> None:
    """Runs in the store worker's process."""
    _prepare(STORE_NAME)
    from ..adapters.limits import StoreLimits
    from .store_worker import run_store_worker

    limits = StoreLimits(
        max_upload_bytes=config.service.max_upload_bytes, max_rank=config.memory.max_rank
    )
    run_store_worker(conn, config.service.store, config.model.model, limits)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    logging.getLogger("lorry").setLevel(logging.INFO)


def prepare_engine() -> None:
    """What an engine's process does before anything slow."""
    _prepare(ENGINE_NAME)
    _leave_with_parent()


def _leave_with_parent() -> None:
    """The engine goes the moment the front end does, and its memory with it.

    The end of the pipe is only read between two steps, and not at all while a model is loaded.
    The store worker is spared: it finishes what it is writing.
    """
    if not _prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        return  # the pipe alone has to do
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it was gone before we asked


def _prctl(option: int, value: int | bytes) -> bool:
    """Whether this system has it: Linux does."""
    try:
        return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False


def _prepare(name: str) -> None:
    _prctl(PR_SET_NAME, name.encode())  # what `ps` and `top` show
    # A Ctrl-C or a service manager's SIGTERM reaches the whole group; the front end drains
    # first and then tells its children.
    ignored: Any = signal.SIG_IGN
    signal.signal(signal.SIGINT, ignored)
    signal.signal(signal.SIGTERM, ignored)
    log_to_stderr()
