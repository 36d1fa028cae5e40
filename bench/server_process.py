"""A `lorry serve` of one's own, as a child process on a free port.

Owns the start (waits for the line that says ready), the last lines it wrote, and its end by
SIGTERM. Does not know what is asked of the server. Used by the demo and the benchmarks.
"""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY = re.compile(r"lorry ready on (\S+:\d+)")
NUM_KEPT_LINES = 40
# What the `lorry` script does; the script itself may not be there where the project is linked.
ENTRY_POINT = "import sys; from lorry.server.cli import main; sys.exit(main())"


def lorry_command(*args: str) -> list[str]:
    """The `lorry` of this very installation, whatever else is on the path."""
    return [sys.executable, "-P", "-c", ENTRY_POINT, *args]


class ServerFailed(Exception):
    """The server did not start, or did not end as it should; says what it wrote last."""


class ServerProcess:
    """Started by `with`, killed at its end if `stop` was not called."""

    def __init__(self, model: Path, store: Path, *flags: str, start_timeout_s: float = 120) -> None:
        self.address = ""  # HOST:PORT once entered
        self._command = lorry_command(
            "serve", "--model", str(model), "--store", str(store), "--port", "0", *flags
        )
        self._start_timeout_s = start_timeout_s
        self._last_lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        ready: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        try:
            self.address = ready.get(timeout=self._start_timeout_s)
        except queue.Empty:
            self.kill()
            raise self._failed(f"was not ready within {self._start_timeout_s:g} s") from None
        except BaseException:
            self.kill()
            raise
        if not self.address:
            raise self._failed(f"ended with code {self._ended()} before it was ready")
        return self

    @property
    def pid(self) -> int:
        """Of its front end; the other processes are children of that one."""
        return self._child.pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def stop(self, timeout_s: float = 60) -> None:
        """Asks it to drain and end; its output is read to the last line.

        Raises:
            ServerFailed: it does not end, or with another code than 0.
        """
        self._child.send_signal(signal.SIGTERM)
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failed(f"did not end within {timeout_s:g} s of SIGTERM") from None
        if code != 0:
            raise self._failed(f"ended with code {code} after SIGTERM, not 0")

    def kill(self) -> None:
        """Safe to call again. What it started sees its end of the pipes closed, and ends too."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._reader.join(timeout=10)

    def _ended(self) -> int:
        """Its exit code; its output ends a moment before the process does."""
        try:
            return self._child.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._child.returncode

    def _read(self, ready: queue.Queue[str]) -> None:
        """Runs in a thread to the end of the output, so that the child never waits for us."""
        assert self._child.stdout is not None  # asked for above
        with self._child.stdout as stream:
            for line in stream:
                self._last_lines.append(line.rstrip())
                if found := READY.search(line):
                    ready.put(found[1])
        ready.put("")

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed("\n".join([f"The server {what}. Its last lines:", *self._last_lines]))


def run_lorry(args: Sequence[str]) -> int:
    """Runs one `lorry` command on this terminal and returns its exit code."""
    return subprocess.run(lorry_command(*args), check=False).returncode
