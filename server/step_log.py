"""A line of numbers for each step, in a file that outlives the server: for study afterwards.

Owns the format: CSV with a head line, whose columns are those of `MeteredStep`, the amounts of its
work one by one: numbers and instants, no names. Each line is written when it comes, so an engine
that is killed loses none. Observing must not end a service: when the file cannot be written the log
stops, aloud, with the last whole line. Made by engine_process.py, fed by the meter, read by
lorry.bench.cost.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from .scheduling.step_work import StepWork
from .step_meter import MeteredStep

HEAD = ("ended_s", "seconds", "predicted_s")  # an instant, then two durations
TAIL = ("lora_tokens", "max_adapter_bytes")
COLUMNS = (*HEAD, *StepWork._fields, *TAIL)

_log = logging.getLogger(__name__)


def line_of(step: MeteredStep) -> str:
    times = f"{step.ended_s:.6f},{step.seconds:.9f},{step.predicted_s:.9f}"
    amounts = (*step.work, step.lora_tokens, step.max_adapter_bytes)
    return f"{times},{','.join(map(str, amounts))}"


class StepLog:
    """Appends: an engine that was started again goes on in the same file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = path.open("ab", buffering=0)
        if not self._file.tell():
            self._put(",".join(COLUMNS))

    def write(self, step: MeteredStep) -> None:
        self._put(line_of(step))

    def close(self) -> None:
        self._file.close()

    def _put(self, line: str) -> None:
        if self._file.closed:
            return
        told, whole_bytes = f"{line}\n".encode("ascii"), self._file.tell()
        try:
            while told:
                told = told[self._file.write(told) :]
        except OSError as error:
            why = error.strerror
            _log.warning("--step-log: %s cannot be written any more: %s", self._path, why)
            # Half a line would make one with the first of an engine that is started again.
            with suppress(OSError):
                self._file.truncate(whole_bytes)
            self._file.close()


def drop_empty_log(path: Path | None) -> None:
    """A server that never ran a step leaves no file in the way of the next one's."""
    if path is None or not path.exists():
        return
    with path.open("rb") as file:
        has_steps = len(file.readlines(2 * len(",".join(COLUMNS)))) > 1
    if not has_steps:
        path.unlink()
