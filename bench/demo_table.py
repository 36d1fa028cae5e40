"""What the demo asks, what came back, and whether that is right.

Pure: rows in, a table and a verdict out. Compares with the answers that PEFT gave when the zoo
was recorded; knows no server and no clock. Used by demo.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from .load import Reply

MIN_RIGHT_SHARE = 62 / 64
BASE_LABEL = "(base)"


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the zoo's answers.json."""

    adapter: str  # empty: the base
    prompt: str
    token_ids: tuple[int, ...]  # what PEFT generated, end of sequence included
    text: str  # the same without special tokens
    expected: str  # the right answer by the task's rule


@dataclass(frozen=True, slots=True)
class Row:
    question: Question
    reply: Reply
    rank: str  # as the table shows it; "-" for the base

    @property
    def adapter(self) -> str:
        return self.question.adapter or BASE_LABEL

    @property
    def is_equal(self) -> bool:
        """Token for token what PEFT gave."""
        same_tokens = self.reply.token_ids == self.question.token_ids
        return not self.reply.error and same_tokens and self.reply.text == self.question.text

    @property
    def is_right(self) -> bool:
        return not self.reply.error and self.reply.text == self.question.expected


@dataclass(frozen=True, slots=True)
class Verdict:
    num_rows: int
    num_equal: int  # to PEFT's recorded tokens
    num_right: int  # by the task's rule
    differing: tuple[str, ...]  # a line for each row that is not equal

    @property
    def is_pass(self) -> bool:
        enough = self.num_right >= MIN_RIGHT_SHARE * self.num_rows
        return self.num_rows > 0 and self.num_equal == self.num_rows and enough


def load_questions(path: Path) -> list[Question]:
    return [
        Question(
            adapter=record["adapter"],
            prompt=record["prompt"],
            token_ids=tuple(record["token_ids"]),
            text=record["text"],
            expected=record["expected"],
        )
        for record in json.loads(path.read_text())
    ]


def rank_label(config_path: Path) -> str:
    """The rank by an adapter's config; smallest and largest where modules differ."""
    config = json.loads(config_path.read_text())
    ranks = [config["r"], *config.get("rank_pattern", {}).values()]
    return str(ranks[0]) if len(ranks) == 1 else f"{min(ranks)}-{max(ranks)}"


def judge(rows: Sequence[Row]) -> Verdict:
    return Verdict(
        num_rows=len(rows),
        num_equal=sum(row.is_equal for row in rows),
        num_right=sum(row.is_right for row in rows),
        differing=tuple(_difference(row) for row in rows if not row.is_equal),
    )


def _difference(row: Row) -> str:
    got = row.reply.error or f"{row.reply.text!r} {list(row.reply.token_ids)}"
    wanted = f"{row.question.text!r} {list(row.question.token_ids)}"
    return f"{row.adapter} {row.question.prompt!r}: got {got}, PEFT gave {wanted}"


def draw_table(rows: Sequence[Row], *, unicode: bool = True) -> Table:
    """A line a row, in the order given; the mark says whether it is right and PEFT's own."""
    tick, cross = ("✓", "✗") if unicode else ("yes", "NO")
    table = Table(title=f"{len(rows)} requests at once", title_justify="left")
    for name in ("adapter", "rank", "prompt", "answer", "expected"):
        table.add_column(name, justify="right" if name == "rank" else "left", overflow="fold")
    table.add_column("right", justify="center")
    table.add_column("= PEFT", justify="center")
    table.add_column("TTFT ms", justify="right")
    table.add_column("TPOT ms", justify="right")
    for row in rows:
        table.add_row(
            row.adapter,
            row.rank,
            Text(row.question.prompt),
            Text(row.reply.error or row.reply.text, "red" if row.reply.error else ""),
            Text(row.question.expected),
            _mark(row.is_right, tick, cross),
            _mark(row.is_equal, tick, cross),
            f"{row.reply.ttft_s * 1e3:.0f}",
            f"{row.reply.tpot_s * 1e3:.1f}",
        )
    return table


def _mark(is_good: bool, tick: str, cross: str) -> Text:
    return Text(tick, "green") if is_good else Text(cross, "bold red")
