"""Traces: rows of three public formats, read into one form.

Azure LLM 2023 and 2024 (CSV), BurstGPT v1 and v2 (CSV), Mooncake FAST'25 (JSON Lines, whose block
hashes say which prompts begin alike). The files are not among us. What cannot be served (no prompt,
or an answer that failed) is left out and counted; what cannot be read is an error that names file,
line, column and value. Called by make.py.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from .errors import WorkloadError, must

TraceFormat = Literal["azure", "burstgpt", "mooncake"]
MOONCAKE_BLOCK_TOKENS = 512
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TraceRow:
    at_s: float  # from the first row
    prompt_tokens: int
    answer_tokens: int
    # Ids of the prompt's blocks of 512 tokens, the last one perhaps shorter: the same id, the same
    # tokens before it too. Empty: the format does not say.
    blocks: tuple[int, ...] = ()
    session: str = ""  # conversation; empty: not said


@dataclass(frozen=True, slots=True)
class Trace:
    rows: tuple[TraceRow, ...]  # by instant
    num_left_out: int  # without a prompt or an answer


def read_trace(path: Path, trace_format: TraceFormat) -> Trace:
    must(trace_format in get_args(TraceFormat), f"format {trace_format!r}: not one of its kinds")
    with _opened(path) as file:
        if trace_format == "mooncake":
            found = list(_mooncake(path, file))
        else:
            found = list(_table(path, file, trace_format))
    kept = sorted((row for row in found if row.prompt_tokens and row.answer_tokens), key=_at)
    must(bool(kept), f"{path}: no row with a prompt and an answer among {len(found)}")
    first_s = kept[0].at_s
    rows = tuple(
        TraceRow(row.at_s - first_s, row.prompt_tokens, row.answer_tokens, row.blocks, row.session)
        for row in kept
    )
    return Trace(rows, len(found) - len(kept))


def _at(row: TraceRow) -> float:
    return row.at_s


@contextmanager
def _opened(path: Path) -> Generator[TextIO]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="")
        ) as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path}: {error}") from error


def _table(path: Path, file: TextIO, trace_format: TraceFormat) -> Iterator[TraceRow]:
    """Columns are found by their names: releases differ in what stands between."""
    columns = _AZURE if trace_format == "azure" else _BURSTGPT
    reader = csv.reader(file)
    header = next(reader, [])
    missing = [name for name in columns if name not in header]
    must(not missing, f"{path}, line 1: no column {', '.join(missing)} in {','.join(header)!r}")
    places = [header.index(name) for name in columns]
    session_place = header.index("Session ID") if "Session ID" in header else -1
    for cells in reader:
        if not cells:
            continue
        where = f"{path}, line {reader.line_num}"
        must(len(cells) == len(header), f"{where}: {len(cells)} cells under {len(header)} names")
        at, prompt, answer = (
            (f"{where}, column {name}", cells[place])
            for name, place in zip(columns, places, strict=True)
        )
        yield TraceRow(
            _instant_s(*at) if trace_format == "azure" else _number(*at),
            _whole(*prompt),
            _whole(*answer),
            session=cells[session_place] if session_place >= 0 else "",
        )


def _mooncake(path: Path, file: TextIO) -> Iterator[TraceRow]:
    for line_num, line in enumerate(file, start=1):
        where = f"{path}, line {line_num}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkloadError(f"{where}: {error}") from error
        must(isinstance(row, dict), f"{where}: {line.strip()[:60]!r} is no object")
        must("hash_ids" in row, f"{where}, column hash_ids: missing")
        blocks = row["hash_ids"]
        is_list = isinstance(blocks, list) and all(type(block) is int for block in blocks)
        must(is_list, f"{where}, column hash_ids: {blocks!r:.60} is no list of whole numbers")
        prompt = _whole(f"{where}, column input_length", row.get("input_length"))
        wanted = -(-prompt // MOONCAKE_BLOCK_TOKENS)
        must(
            len(blocks) == wanted,
            f"{where}, column hash_ids: {len(blocks)} blocks for {prompt} tokens, not {wanted}",
        )
        yield TraceRow(
            _number(f"{where}, column timestamp", row.get("timestamp")) / 1000,
            prompt,
            _whole(f"{where}, column output_length", row.get("output_length")),
            blocks=tuple(blocks),
        )


def _instant_s(where: str, text: str) -> float:
    """Azure's instants have seven decimals in 2023, and a zone or no decimals in 2024."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise WorkloadError(f"{where}: {text!r} is no instant") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds()


def _number(where: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    must(math.isfinite(number), f"{where}: {value!r} is no number")
    return number


def _whole(where: str, value: object) -> int:
    number = _number(where, value)
    must(number >= 0 and number == int(number), f"{where}: {value!r} is no number of tokens")
    return int(number)
