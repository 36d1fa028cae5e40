"""The README's figures of memory come from the file, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.bench.memory.document import make_document
from lorry.bench.memory.options import parse
from lorry.bench.readme import RENDERERS
from lorry.bench.readme_memory import MEMORY_PATH, render_footprint, render_memory
from lorry.bench.readme_tables import ReadmeError
from lorry.tests.memory_study_builders import make_report, small_waste


def test_not_measured_without_a_file(tmp_path: Path) -> None:
    assert render_memory(tmp_path / "none.json") == "not measured"
    assert render_footprint(tmp_path / "none.json") == "not measured"
    assert (RENDERERS["memory"], RENDERERS["footprint"]) == (render_memory, render_footprint)
    assert parse([]).result.resolve() == MEMORY_PATH, "what the bench writes is what is shown"


def test_both_halves_and_the_layouts_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(make_document(make_report(waste=small_waste()))))
    text = render_memory(path)
    assert "| zipf | lru | 1000.0 | 1000.0 | 1000.0 | 0.25 | 0.50 | 14 | 0.500 | 0.500 |" in text
    assert "| zipf | lru | 1000.0 | 1000.0 | 1000.0 | 0.25 | 0.50 | 14 | 0.800 | 0.800 |" in text
    assert text.index("Simulated:") < text.index("Live:")
    assert "a second server under lru: 1.100 of the first one's mean TTFT" in text
    assert "Missed" not in text
    layout = render_footprint(path)
    row = "| qwen2.5-0.5b | q_proj, v_proj | 192 KiB | 16 | 6 | 11 | 44 |"
    assert row in layout


def test_a_part_that_was_not_run_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(make_document(make_report(live=None))))
    assert "Live:" not in render_memory(path)
    assert render_footprint(path) == "not measured"


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text('{"layouts": [1], "halves": [1]}')
    for render in (render_memory, render_footprint):
        with pytest.raises(ReadmeError, match="no result of lorry bench memory"):
            render(path)
