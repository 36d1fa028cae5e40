"""`lorry bench memory`: what a command line means, what is printed and written, the exit code."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lorry.bench.memory.command import conclude
from lorry.bench.memory.options import BUILD, RESULTS, Options, parse
from lorry.bench.memory.workloads import JUDGED_SEEDS, KINDS
from lorry.tests.memory_study_builders import make_cells, make_report, small_waste

Captured = pytest.CaptureFixture[str]


def test_only_a_whole_run_replaces_the_result() -> None:
    """A quick run in the place of the figures that the README quotes."""
    whole = parse([])
    assert (whole.parts, whole.kinds, whole.seeds) == (
        ("waste", "simulated", "live"),
        KINDS,
        JUDGED_SEEDS,
    )
    assert whole.result == RESULTS / "memory.json"
    for argv in (["--quick"], ["--only", "live"], ["--kinds", "zipf"], ["--load", "0.5"]):
        assert parse(argv).result.parent == BUILD
    quick = parse(["--quick"])
    assert (quick.kinds, quick.live.seeds, quick.live.num_again) == (("zipf",), (1,), 0)
    assert parse(["--only", "live", "--only", "waste"]).parts == ("waste", "live")
    assert parse(["--link-bytes-per-s", "700MiB"]).link_bytes_per_s == 700 * 2**20


@pytest.mark.parametrize("argv", [["--kinds", "zipf,x"], ["--load", "0"], ["--only", "none"]])
def test_what_does_not_fit_is_refused(argv: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert argv[1].rpartition(",")[2] in capsys.readouterr().err


def conclude_in(folder: Path, capsys: Captured, **changes: object) -> tuple[int, dict[str, object]]:
    options: Options = replace(parse([]), result=folder / "memory.json")
    status = conclude(make_report(**changes), options, Console(file=io.StringIO(), width=200))
    return status, json.loads(capsys.readouterr().out)


def test_the_run_ends_with_one_line_and_a_file(tmp_path: Path, capsys: Captured) -> None:
    """A program that reads stdout finds the figures, a person later the raw times."""
    status, line = conclude_in(tmp_path, capsys, waste=small_waste())
    assert status == 0
    document = json.loads((tmp_path / "memory.json").read_text())
    assert document["economy_vs_lru_mean_ttft"] == line["economy_vs_lru_mean_ttft"] == 0.8
    assert document["machine"]["commit"] and line["bench"] == "memory"
    with gzip.open(tmp_path / "memory" / "ttft.jsonl.gz", "rt") as file:
        rows = [json.loads(row) for row in file]
    assert [row["half"] for row in rows] == ["simulated"] * 6 + ["live"] * 6 + ["again"]
    assert rows[0]["ttft_s"] == [0.5] * 4


def test_a_missed_target_is_an_exit_code_but_not_of_a_quick_run(
    tmp_path: Path, capsys: Captured
) -> None:
    slow = make_cells({"economy": 0.95, "lru": 1.0, "split": 2.0})
    assert conclude_in(tmp_path, capsys, simulated=slow)[0] == 1
    assert conclude_in(tmp_path, capsys, simulated=slow, is_quick=True)[0] == 0
    assert conclude_in(tmp_path, capsys, failed=("live: no",), is_quick=True)[0] == 1
