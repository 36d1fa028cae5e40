"""Reads what `lorry serve --step-log FILE` wrote, takes stretches of it, keeps them with results.

Owns the errors: a file of another make, or a line that is none. A last line that was cut off by
the end of the server is left out. Names that end in .gz are compressed, always to the same bytes.
Used by `lorry bench cost` and by the simulator's fit.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...server.scheduling.step_work import StepWork
from ...server.step_log import COLUMNS, HEAD, line_of
from ...server.step_meter import MeteredStep


@dataclass(frozen=True, slots=True)
class Span:
    """Of the machine's monotonic clock, which is the engine's too."""

    began_s: float
    ended_s: float


def steps_within(steps: Iterable[MeteredStep], span: Span) -> list[MeteredStep]:
    """Those that ended in it."""
    return [step for step in steps if span.began_s <= step.ended_s <= span.ended_s]


class BadStepLog(Exception):
    """Names the file, the line and what is wrong."""


def read_step_log(path: Path) -> list[MeteredStep]:
    """In the order in which they ended.

    Raises:
        BadStepLog: it is not a step log of this version.
        OSError: it cannot be read.
    """
    told = path.read_bytes()
    try:
        text = (gzip.decompress(told) if path.suffix == ".gz" else told).decode("ascii", "replace")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadStepLog(f"{path}: {error}") from error
    head, *lines = text.split("\n")
    if tuple(head.split(",")) != COLUMNS:
        raise BadStepLog(f"{path}, line 1: {head[:200]!r} is not {','.join(COLUMNS)!r}")
    lines.pop()  # empty, or cut off
    return [_step(path, number, line) for number, line in enumerate(lines, 2)]


def write_step_log(path: Path, steps: Iterable[MeteredStep]) -> None:
    """In the same format, compressed."""
    lines = [",".join(COLUMNS), *(line_of(step) for step in steps), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode("ascii"), mtime=0))


def _step(path: Path, number: int, line: str) -> MeteredStep:
    words = line.split(",")
    try:
        if len(words) != len(COLUMNS):
            raise ValueError(f"{len(words)} columns, not {len(COLUMNS)}")
        ended_s, seconds, predicted_s = map(float, words[: len(HEAD)])
        *amounts, lora_tokens, max_adapter_bytes = map(int, words[len(HEAD) :])
    except ValueError as error:
        raise BadStepLog(f"{path}, line {number}: {error}") from error
    if not seconds > 0.0:
        raise BadStepLog(f"{path}, line {number}: seconds is {seconds}; it must be more than 0")
    work = StepWork(*amounts)
    return MeteredStep(ended_s, seconds, predicted_s, work, lora_tokens, max_adapter_bytes)
