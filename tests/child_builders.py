"""Entries of child processes, and a parent that can be killed: imported by fresh interpreters."""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from lorry.server.children import ENGINE_NAME, ProcessChild, prepare_engine
from lorry.server.config import ModelConfig, ServerConfig


def spin(conn: Connection, config: ServerConfig) -> None:
    """Works until it is told to rest, then waits for the end of the pipe."""
    conn.send("up")
    while not conn.poll(0):
        pass
    conn.recv()
    conn.send("resting")
    conn.recv()


def deaf_engine(conn: Connection, config: ServerConfig) -> None:
    """As an engine that loads a model: it looks at no pipe."""
    prepare_engine()
    conn.send("up")
    signal.pause()


def make_child(entry: object) -> ProcessChild:
    return ProcessChild(ENGINE_NAME, entry, ServerConfig(ModelConfig("tiny")))  # type: ignore[arg-type]


if __name__ == "__main__":  # a front end whose only child is deaf
    child = make_child(deaf_engine)
    child.conn.recv()
    sys.stdout.write("up\n")
    sys.stdout.flush()
    signal.pause()
