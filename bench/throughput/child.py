"""An object that lives in a process of its own: made there, called from here, one call at a time.

Owns the pipe and the process's end; errors come back as text, with the child's own trace. Does
not know what is called. Peers and probes run in such children, so that neither their memory nor
their threads touch whoever is measured next.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

END_TIMEOUT_S = 10.0


class ChildFailed(Exception):
    """The call, the object's making or the process itself failed; holds what it said."""


class Child:
    """`make(*args)` in a fresh process; `call` runs a method of what it gave."""

    def __init__(self, make: Callable[..., object], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = make.__name__
        self._conn, theirs = context.Pipe()
        # A daemon: it does not outlive a bench that is killed.
        self._process = context.Process(
            target=_serve, args=(theirs, make, args), name=f"bench-{self._name}", daemon=True
        )
        self._process.start()
        theirs.close()  # else the pipe would not end with the child

    def __enter__(self) -> Self:
        try:
            self._receive()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, method: str, *args: object, **options: object) -> Any:
        """What the method gives; waits for it.

        Raises:
            ChildFailed: it raised, or the process is gone.
        """
        self._conn.send((method, args, options))
        return self._receive()

    def close(self) -> None:
        """The child reads the end of its pipe and leaves; killed if it does not."""
        self._conn.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            good, value = self._conn.recv()
        except (EOFError, OSError) as error:
            self._process.join(END_TIMEOUT_S)
            code = self._process.exitcode
            raise ChildFailed(f"{self._name}: its process ended with code {code}") from error
        if not good:
            raise ChildFailed(f"{self._name}: {value}")
        return value


def _serve(conn: Connection, make: Callable[..., object], args: tuple[object, ...]) -> None:
    """The child's whole life. Whatever fails is the caller's to hear."""
    try:
        made = make(*args)
    except Exception:
        conn.send((False, traceback.format_exc()))
        return
    conn.send((True, None))
    while True:
        try:
            method, positional, named = conn.recv()
        except EOFError:
            return
        try:
            conn.send((True, getattr(made, method)(*positional, **named)))
        except Exception:
            conn.send((False, traceback.format_exc()))
