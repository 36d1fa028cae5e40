"""What a study of cold starts says: figures, targets, the last line, files and plots."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorry.bench.coldstart import command, pictures
from lorry.bench.coldstart.document import last_line, make_document, misses, not_counted
from lorry.bench.coldstart.figures import rows_of, times_of
from lorry.bench.coldstart.options import BUILD, RESULTS, parse
from lorry.bench.coldstart.points import course_of, figures_by_point, single_cells
from lorry.bench.coldstart.sizes import AGAIN, ASSIST, AUTO, CACHED, FULL, LABELS, QUICK, WAIT
from lorry.bench.readme import RENDERERS
from lorry.bench.readme_coldstart import COLDSTART_PATH, render_coldstart
from lorry.bench.readme_tables import ReadmeError
from lorry.server.cli import BENCHES
from lorry.server.cli_output import console
from lorry.tests.coldstart_builders import SMALL, TIMES, make_report, make_study


def test_the_line_has_the_names_that_were_asked_for() -> None:
    """A ratio whose name says nothing of what is above would be read the wrong way round."""
    line = last_line(make_report())
    ratios = {"s3": 1.06, "s3_ratio1": 1.06, "burst": 1.06, "single_ratio1": 1.06}
    assert line["auto_vs_cached_mean_ttft"] == pytest.approx(ratios)
    assert line["wait_vs_cached_mean_ttft"]["s3"] == pytest.approx(1.5)
    assert line["auto_vs_best_single"] == pytest.approx(1.0)
    assert line["bystander_tpot_ratio"] == pytest.approx(1.0)
    assert line["chosen"]["s3"] == {ASSIST: 12}
    assert line["p99_ttft_s"]["burst"][WAIT] == pytest.approx(TIMES[WAIT])
    assert [one["ratio"] for one in line["link"]["by_ratio"]] == [0.35, 1.0]
    assert line["link"]["by_ratio"][1]["load_s"] == pytest.approx(0.1)
    assert misses(make_report()) == [] == not_counted(rows_of(make_report().study.cells))


def test_what_was_not_run_is_null() -> None:
    rows = tuple(row for row in SMALL.rows if row.name == "s3")
    line = last_line(make_report(make_study(replace(SMALL, rows=rows, labels=(CACHED, AUTO)))))
    assert line["auto_vs_cached_mean_ttft"] == pytest.approx(
        {"s3": 1.06, "s3_ratio1": None, "burst": None}
    )
    assert line["wait_vs_cached_mean_ttft"]["s3"] is None
    assert line["auto_vs_best_single"] is None and line["auto_vs_best_single_worst"] == ""


@pytest.mark.parametrize(
    ("world", "told"),
    [
        ({"times_s": TIMES | {AUTO: 0.109, ASSIST: 0.109}}, "auto / cached mean TTFT is 1.090"),
        ({"times_s": TIMES | {AUTO: 0.1065, ASSIST: 0.1}}, "auto / assist, the best single way"),
        ({"gaps_s": {AUTO: 0.022}}, "TPOT of bystanders, auto / cached, is 1.100"),
    ],
    ids=["ideal", "best", "bystanders"],
)
def test_a_missed_target_is_told(world: dict[str, Any], told: str) -> None:
    """A run that misses and ends with 0 is a claim."""
    report = make_report(make_study(**world))
    assert any(told in line for line in misses(report))
    assert make_document(report)["misses"] == misses(report)
    assert misses(replace(report, is_quick=True)) == []


def test_equal_servers_that_differ_as_much_excuse_a_miss() -> None:
    """On a noisy machine 1.06 says nothing when the same server twice gives 1.07."""
    times = TIMES | {AUTO: 0.106, ASSIST: 0.1, AGAIN: 0.107}
    assert misses(make_report(make_study(times_s=times))) == []
    beside = {AUTO: 0.0213, AGAIN: 0.0214}
    assert misses(make_report(make_study(gaps_s=beside))) == []


def test_where_waiting_costs_little_the_ideal_is_no_target() -> None:
    """But to lose nothing to the best way is."""
    times = TIMES | {WAIT: 0.12, AUTO: 0.12, ASSIST: 0.13}
    report = make_report(make_study(times_s=times))
    assert misses(report) == []
    assert [line.split(":")[0] for line in not_counted(report.rows)] == ["s3", "burst", "s3_ratio1"]
    assert misses(make_report(make_study(times_s=times | {AUTO: 0.13})))


def test_figures_are_of_cold_requests_alone() -> None:
    """Bystanders have their first tokens at once."""
    rows = {row.name: row for row in rows_of(make_study().cells)}
    burst = rows["burst"].by_label[WAIT]
    assert burst.num_requests == SMALL.num_burst
    assert (burst.ttft.mean_s, burst.bystander_tpot_s) == pytest.approx((0.15, 0.02))
    assert burst.foretold == pytest.approx(0.5)
    assert math.isnan(rows["s3"].by_label[WAIT].bystander_tpot_s)
    assert rows["s3"].spread == pytest.approx(1.01)


def test_p99_is_a_time_that_was_measured() -> None:
    found = times_of([float(value) for value in range(1, 201)])
    assert (found.mean_s, found.p50_s, found.p99_s) == (100.5, 100.5, 198.0)
    assert times_of([0.1, math.inf]).mean_s == math.inf


def test_points_have_their_own_requests_and_bystanders() -> None:
    cells = single_cells(make_study().cells)
    found = figures_by_point(cells, SMALL.points)
    assert [(one.point, one.label) for one in found[:2]] == [
        (SMALL.points[0], CACHED),
        (SMALL.points[0], WAIT),
    ]
    assert len(found) == len(SMALL.points) * len(LABELS)
    auto = next(one for one in found if one.label == AUTO)
    assert auto.ways == (ASSIST, ASSIST) and auto.bystander_tpot_s == pytest.approx(0.02)
    course = course_of(next(cell for cell in cells if cell.label == AUTO), 1)
    assert (course.scheduled_s, course.came_s) == pytest.approx((0.01, 0.106))
    assert course.landed_s == pytest.approx(0.05)
    assert len(course.bystander_s) == 8 * SMALL.num_bystander_tokens
    assert course.bystander_s[0] < 0, "they were decoding before it came"


def test_only_a_whole_run_is_written_where_results_are_quoted() -> None:
    assert parse([]).result == RESULTS / "coldstart.json"
    assert parse([]).sizes == FULL and parse(["--quick"]).sizes == QUICK
    for argv in (["--quick"], ["--only", "s3"], ["--labels", "auto,cached"], ["--device", "cuda"]):
        assert parse(argv).result == BUILD / "coldstart.json"
    assert parse(["--labels", "auto,cached"]).sizes.labels == (CACHED, AUTO)
    assert [row.name for row in parse(["--only", "s3", "--ratios", "1"]).sizes.rows] == [
        "s3_ratio1"
    ]
    for argv in (["--labels", "auto"], ["--labels", "cached,none"], ["--ratios", "2"]):
        with pytest.raises(SystemExit):
            parse(argv)


def test_a_run_ends_with_its_line_and_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parse(["--result", str(tmp_path / "c.json")])
    assert command.conclude(make_report(), options, console(), draw=lambda *_: None) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["bench"] == "coldstart"
    document = json.loads((tmp_path / "c.json").read_text())
    assert document.items() >= line.items()
    stamps = list((tmp_path / "c").glob("*-round*.jsonl.gz"))
    assert len(stamps) == len(make_study().cells)
    told = (tmp_path / "c" / "told.jsonl").read_text().splitlines()
    assert json.loads(told[6])["way"] == "wait"
    missed = make_report(make_study(times_s=TIMES | {AUTO: 0.2}))
    assert command.conclude(missed, options, console(), draw=lambda *_: None) == 1


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pictures.draw_pictures(tmp_path, make_report())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pictures.PICTURES)


def test_readme_reads_the_file(tmp_path: Path) -> None:
    """Figures that are typed are figures that are not measured again."""
    assert render_coldstart(tmp_path / "none.json") == "not measured"
    assert RENDERERS["coldstart"] is render_coldstart
    assert parse([]).result.resolve() == COLDSTART_PATH and "coldstart" in BENCHES
    path = tmp_path / "coldstart.json"
    path.write_text(json.dumps(make_document(make_report())))
    text = render_coldstart(path)
    assert (
        "| s3, ratio 0.35 | auto | 106.0 | 106.0 | 106.0 | 1.060 | 20.0 | - | assist 12 |" in text
    )
    assert "| 64 | 256 | 100.0 | 150.0 | 120.0 | 106.0 | 106.0 | 101.0 |" in text
    path.write_text(json.dumps(make_document(make_report(is_quick=True))))
    with pytest.raises(ReadmeError, match="quick"):
        render_coldstart(path)
