"""The README's tables of models: every case has a row, and a failed one says so."""

import json
from pathlib import Path

import pytest

from lorry.bench.exactness.cases import CASES
from lorry.bench.exactness.refused import REFUSED
from lorry.bench.readme_models import render_models, render_refused_models
from lorry.bench.readme_tables import ReadmeError


def write_result(tmp_path: Path, **changes: object) -> Path:
    run = {"tokens": 600, "ties": 1, "least_changed": 0.41}
    entry = {
        "case": "llama",
        "head_dim": 64,
        "tokens": {"tight": run, "roomy": run},
        "rounding": {
            "bfloat16": {"ratio": 1.019, "adapters": {"base": {"ratio": 1.0}, "a": {"ratio": 1.3}}},
            "float16": {"ratio": 0.98, "adapters": {"base": {"ratio": 0.99}}},
        },
        "failures": [],
    }
    document = {
        "cases": [{**entry, **changes}],
        "settings": [{}, {}],
        "machine": {"commit": "abc", "packages": {"transformers": "5", "peft": "0.21"}},
    }
    path = tmp_path / "exactness.json"
    path.write_text(json.dumps(document))
    return path


def test_a_case_is_shown_with_what_came_of_it(tmp_path: Path) -> None:
    """A figure of another case or run in a row would be a claim that nobody measured."""
    table = render_models(write_result(tmp_path))
    (row,) = [line for line in table.splitlines() if line.startswith("| `llama` |")]
    assert row.endswith("| 64 | all 1,200, 2 ties | 1.02 (1.30) | 0.98 (0.99) |")
    assert table.count("not measured") == 4 * (len(CASES) - 1)
    assert "changes 41%" in table


def test_a_failed_case_is_shown_as_failed(tmp_path: Path) -> None:
    """A row that looked like the others would hide the one thing the table is for."""
    table = render_models(write_result(tmp_path, failures=["tight: WrongToken"]))
    assert "| 64 | **no** |" in table


def test_no_result_and_a_wrong_one_are_told_apart(tmp_path: Path) -> None:
    """Without a run the table says so; another bench's file is an error."""
    assert "has not been run" in render_models(tmp_path / "none.json")
    with pytest.raises(ReadmeError):
        render_models(write_result(tmp_path, rounding={}))


def test_every_refusal_is_listed() -> None:
    """Whoever looks for their model must find it on one of the two lists."""
    assert all(case.label in render_refused_models() for case in REFUSED)
