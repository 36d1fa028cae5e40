"""Runs one part in a process of its own, within its time, and keeps what it said last.

Owns the process and its end: one that outlives its budget is ended with all that it started.
Does not know what a part shows nor what its figures mean.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..machine import ROOT_DIR
from .parts import Part, read_tests

NUM_LAST_LINES = 40
LAST_BYTES = 16_000
END_S = 5.0  # between asking a process to end and making it

PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part."""

    part: Part
    status: str
    seconds: float
    budget_s: float  # that it was given
    reason: str  # why it did not pass; empty: it did
    last_lines: tuple[str, ...]  # of its output
    document: dict[str, Any] | None  # what it wrote; None: nothing that can be read


def run_part(part: Part, limit_s: float, log: Path) -> Outcome:
    """Waits for it, `limit_s` at most; its output goes to `log`."""
    part.result.unlink(missing_ok=True)
    start_s = time.monotonic()
    with log.open("wb") as output:
        # A session of its own, so that what it starts can be ended with it.
        child = subprocess.Popen(
            part.command,
            cwd=ROOT_DIR,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child)
    seconds = time.monotonic() - start_s
    document = _read(part.result)
    status, reason = judge(part, code, document)
    return Outcome(part, status, seconds, limit_s, reason, _last_lines(log), document)


def judge(part: Part, code: int | None, document: dict[str, Any] | None) -> tuple[str, str]:
    """Status, and why it is no pass. `code` None: it was ended."""
    if code is None:
        return TIMED_OUT, "ended by its time budget"
    if code != 0:
        return FAILED, f"ended with code {code}"
    if document is None:
        return FAILED, f"wrote no {part.result.name}"
    complaint = part.complain(document)
    return (FAILED, complaint) if complaint else (PASSED, "")


def not_run(part: Part, reason: str) -> Outcome:
    return Outcome(part, NOT_RUN, 0.0, 0.0, reason, (), None)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Safe for one that has ended: its group then holds what it left behind, or nobody."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            continue


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_tests(path) if path.suffix == ".xml" else json.loads(path.read_text())
    except (OSError, ValueError, SyntaxError):
        return None


def _last_lines(log: Path) -> tuple[str, ...]:
    text = log.read_bytes()[-LAST_BYTES:].decode(errors="replace")
    return tuple(line.rstrip() for line in text.splitlines()[-NUM_LAST_LINES:])
