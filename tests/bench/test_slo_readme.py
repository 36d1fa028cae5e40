"""The README's figures of policies under load come from the file, and from nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorry.bench.readme import RENDERERS
from lorry.bench.readme_slo import SLO_PATH, WORDS, render_slo
from lorry.bench.readme_tables import ReadmeError
from lorry.bench.slo.bounds import FixedBounds
from lorry.bench.slo.document import make_document
from lorry.bench.slo.options import parse
from lorry.bench.slo.pictures import PICTURES
from lorry.tests.slo_run_builders import SMALL, make_report


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "slo.json"
    plan = replace(SMALL, **changes)
    path.write_text(json.dumps(make_document(make_report(plan=plan), folder=folder)))
    return path


def test_not_measured_without_a_file(tmp_path: Path) -> None:
    assert render_slo(tmp_path / "none.json") == "not measured"
    assert RENDERERS["slo"] is render_slo
    assert parse([]).result.resolve() == SLO_PATH, "what the bench writes is what is shown"


def test_rows_bounds_and_pairs_are_shown(tmp_path: Path) -> None:
    text = render_slo(write(tmp_path, fixed=FixedBounds(3.1, 0.5)))
    assert "| fcfs | 2x | 2.00 | 0.42 [0.19, 0.68] |" in text
    assert "TTFT 3.1 s and TPOT 500 ms for all" in text
    assert "1.00 requests/s" in text
    assert "Command: `lorry bench slo`" in text
    assert "| 2x | slora less fcfs | +" in text
    assert "0.00 (fcfs), 0.00 (slora) | differs |" in text
    assert "![" not in text, "no plot is there"


def test_plots_that_are_there_are_shown(tmp_path: Path) -> None:
    (tmp_path / "slo-ttft.png").touch()
    text = render_slo(write(tmp_path))
    assert text.count("![") == 1
    assert "![time to first token](bench/results/slo-ttft.png)" in text
    assert "10 times and TPOT 5 times" in text
    assert set(WORDS) == set(PICTURES)


def test_one_round_has_no_spread(tmp_path: Path) -> None:
    assert "| not measured | not measured |" in render_slo(write(tmp_path, num_rounds=1))


def test_quick_run_is_never_shown(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quick": True}))
    with pytest.raises(ReadmeError, match="a quick run"):
        render_slo(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slo.json"
    path.write_text("{}")
    with pytest.raises(ReadmeError, match=r"slo\.json is no result of lorry bench slo"):
        render_slo(path)
