"""A real `lorry serve` in child processes, for tests that go through the wire.

Most of them share one server, for a start takes seconds: the fixture `shared` of
`tests/service/conftest.py` hands out a `SharedServer` (`tests/service_shared.py`), whose model is
a random tiny Llama with a byte tokenizer and a chat template, and whose pool is too small for its
adapters. A test leaves it idle, and uploads under names of its own, which are deleted after it.
A test that kills the front end or needs flags of its own starts `running_server`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READY = re.compile(r"lorry ready on (\S+)")
CLI = [sys.executable, "-P", "-m", "lorry.server.cli"]


@dataclass
class ServerProcess:
    """One running server; `output` grows as it speaks."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    address: str = ""
    reader: threading.Thread = field(default_factory=threading.Thread)
    _ready: threading.Event = field(default_factory=threading.Event)

    def wait_ready(self, timeout_s: float = 180.0) -> str:
        if not self._ready.wait(timeout_s) or not self.address:
            self.process.kill()
            raise AssertionError("the server did not get ready:\n" + "".join(self.output))
        return self.address

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.output.append(line)
                match = READY.search(line)
                if match:
                    self.address = match.group(1)
                    self._ready.set()
        self._ready.set()

    def kill(self) -> None:
        """As a crash would: no handler runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.reader.join(30)  # ends with the last child: they share our end of the pipe

    def stop(self, timeout_s: float = 60.0) -> int:
        """As an operator would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def start_server(model_dir: Path, store: Path, *flags: str) -> ServerProcess:
    """Starts a server on a free port with one thread; returns before it is ready."""
    command = [*CLI, "serve", "--model", str(model_dir), "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", "--calibrate", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
    )
    server = ServerProcess(process)
    server.reader = threading.Thread(target=server.read, daemon=True)
    server.reader.start()
    return server


@contextmanager
def running_server(model_dir: Path, store: Path, *flags: str) -> Iterator[ServerProcess]:
    server = start_server(model_dir, store, *flags)
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        server.process.wait(30)
        server.reader.join(30)


def child_pids(pid: int) -> list[int]:
    """Direct children of a process, from /proc."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
