"""The demo's eyes: its verdict must fail on a wrong answer, and its picture must not lie."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorry.bench.demo import KINDS as DEMO_KINDS
from lorry.bench.demo_table import (
    Question,
    Row,
    draw_table,
    judge,
    load_questions,
    rank_label,
)
from lorry.bench.load import Reply
from lorry.bench.pages_picture import (
    PageRun,
    count_pages,
    draw_grid,
    draw_pages,
    marks_of,
)
from lorry.bench.server_process import ServerFailed, ServerProcess
from lorry.proto import lorry_pb2 as pb


def make_row(**changes: Any) -> Row:
    question = Question("upper", "ab>", (65, 66, 257), "AB", "AB")
    fields: dict[str, Any] = {"token_ids": question.token_ids, "text": question.text, **changes}
    return Row(question, Reply(**fields), "2")


def printed(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_all_equal_and_right_passes() -> None:
    """The plain case, which the others vary."""
    verdict = judge([make_row()] * 64)
    assert (verdict.num_equal, verdict.num_right, verdict.is_pass) == (64, 64, True)
    assert verdict.differing == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": (65, 67, 257)},
        {"text": "A"},
        {"error": "the queue is full"},
        {"token_ids": (65, 66)},
    ],
    ids=["other-token", "other-text", "refused", "cut-short"],
)
def test_one_row_that_differs_fails_and_is_named(changes: dict[str, Any]) -> None:
    """63 of 64 is not what the demo promises."""
    verdict = judge([make_row()] * 63 + [make_row(**changes)])
    assert not verdict.is_pass
    assert verdict.num_equal == 63
    assert len(verdict.differing) == 1
    assert verdict.differing[0].startswith("upper 'ab>'")


def test_equal_to_peft_but_wrong_too_often_fails() -> None:
    """An untrained zoo would be repeated faithfully, and prove little."""
    wrong = Row(Question("upper", "ab>", (65, 257), "A", "AB"), Reply((65, 257), "A"), "2")
    assert judge([make_row()] * 62 + [wrong] * 2).is_pass
    assert not judge([make_row()] * 61 + [wrong] * 3).is_pass


def test_nothing_asked_is_no_pass() -> None:
    """An empty answers file must not turn the demo green."""
    assert not judge([]).is_pass


def test_table_shows_errors_and_marks() -> None:
    """A refused request must be seen in the table, in words and without colours."""
    text = printed(draw_table([make_row(), make_row(error="[queue] is full")], unicode=False))
    assert "[queue] is full" in text
    assert text.count("NO") == 2
    assert text.count("yes") == 2


def test_questions_read_the_recorded_file(tmp_path: Path) -> None:
    """Field names are shared with the recorder by their text alone."""
    path = tmp_path / "answers.json"
    record = {"adapter": "", "prompt": "ab>", "token_ids": [97], "text": "a", "expected": "ab"}
    path.write_text(json.dumps([record]))
    assert load_questions(path) == [Question("", "ab>", (97,), "a", "ab")]


def test_rank_label_tells_a_pattern(tmp_path: Path) -> None:
    """`r` alone would hide that modules differ."""
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 24, "down_proj": 3}}))
    assert rank_label(path) == "3-24"
    path.write_text(json.dumps({"r": 8, "rank_pattern": {}}))
    assert rank_label(path) == "8"


RUNS = (
    PageRun("adapter", 3, "b"),
    PageRun("kv", 2, "7"),
    PageRun("adapter", 1, "a"),
    PageRun("free", 4, ""),
    PageRun("adapter", 1, "b"),
    PageRun("cached", 1, ""),
)


def test_grid_has_one_cell_a_page_in_order() -> None:
    """A picture that sorts or drops pages would not show how they are mixed."""
    assert draw_grid(RUNS, 4).plain == "BBB#\n#A..\n..B="


def test_legend_adds_up() -> None:
    """Every page belongs to one line of the legend."""
    counts = count_pages(RUNS)
    assert sum(counts.values()) == sum(run.count for run in RUNS)
    assert counts["adapter", "b"] == 4
    text = printed(draw_pages(RUNS, width=4))
    for line in ("4 pages", "2 pages", "KV of running requests", "33%", "KV of ended ones"):
        assert line in text


def test_every_kind_of_page_has_a_mark() -> None:
    """A kind that the server learns would end the demo with a KeyError."""
    for kind in pb.PageKind.values():
        assert draw_grid([PageRun(DEMO_KINDS[kind], 1, "x")], 1).plain


def test_more_adapters_than_letters_still_draw() -> None:
    """A pool of many small adapters must not end the demo with an index error."""
    runs = [PageRun("adapter", 1, f"adapter-{idx:03}") for idx in range(60)]
    assert draw_grid(runs, 60).plain.endswith("z" + "+" * 8)
    assert len(marks_of(runs)) == 60


def test_empty_pool_draws() -> None:
    """Requests may end before the first look at the pool."""
    assert "free" in printed(draw_pages(()))


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A demo that waits for ever, or hides the server's own words, helps nobody."""
    with (
        pytest.raises(ServerFailed, match="--max-rank is 0"),
        ServerProcess(tmp_path, tmp_path, "--max-rank", "0"),
    ):
        pytest.fail("it must not start")
