"""The README's figures of the cost model come from the file, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.bench.cost.command import parse
from lorry.bench.readme import RENDERERS
from lorry.bench.readme_cost import COST_PATH, render_cost
from lorry.bench.readme_tables import ReadmeError

ACCURACY = {"num_steps": 300, "r2": 0.987, "mape": 0.0421}
LAW = {
    "name": "padded",
    "what": "the largest rank for all",
    "all_steps": ACCURACY,
    "decode_steps": {**ACCURACY, "mape": 0.0876},
    "prompt_steps": {**ACCURACY, "mape": 0.0543},
    "worse": 0.031,
    "worse_low": 0.02,
    "worse_high": 0.04,
}


def test_not_measured_without_a_file(tmp_path: Path) -> None:
    assert render_cost(tmp_path / "none.json") == "not measured"
    assert RENDERERS["cost"] is render_cost
    assert parse([]).result.resolve() == COST_PATH, "what the bench writes is what is shown"


def test_every_law_is_shown_with_its_interval(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    load = {
        "num_fit": 500,
        "num_judged": 300,
        "kind": "prompt",
        "laws": [LAW | {"name": "full"}, LAW],
    }
    machine = {"cpu": "C", "num_cores": 2, "os": "L", "python": "3", "commit": "abc"}
    path.write_text(json.dumps({"loads": {"mixed": load}, "machine": machine}))
    text = render_cost(path)
    row = "| mixed | the largest rank for all | 4.2 % | 0.987 | 8.8 % | 5.4 % |"
    assert f"{row} +3.1 % [+2.0, +4.0], prompt |" in text
    assert f"{row}  |" in text, "the full law is not worse than itself"
    assert "fitted to 500 steps, judged on 300" in text


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text("{}")
    with pytest.raises(ReadmeError, match="no result of lorry bench cost"):
        render_cost(path)
