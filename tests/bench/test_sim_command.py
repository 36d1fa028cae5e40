"""`lorry bench sim`: parts, the last line, the exit code, and what is written where."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from lorry.bench.cost.step_logs import read_step_log
from lorry.bench.machine import Machine
from lorry.bench.readme_sim import PICTURES, render_sim
from lorry.bench.readme_tables import ReadmeError
from lorry.bench.sim import slora
from lorry.bench.sim.command import Options, conclude, parse, place_of, simulate_live
from lorry.bench.sim.document import FIGURES, PARTS, Report, failures, headline, make_document
from lorry.bench.sim.profile import read_profile
from lorry.bench.sim.scale import ScaleReport
from lorry.bench.sim.slora_published import BY_CV, NOT_OVERLOADED
from lorry.bench.sim.versus import LiveReport, study
from lorry.bench.slo.stamp_file import read_stamps
from lorry.bench.workload.file import read_workload
from lorry.tests import sim_builders
from lorry.tests.sim_study_builders import live_runs

MACHINE = Machine("a CPU", 2, "", "Linux", "3.11", {"numpy": "2"}, "abc")


def make_reproduced(
    attainments: Sequence[float] = (0.1, 0.7),
) -> list[slora.Reproduced]:
    runs = (*slora.QUOTED, NOT_OVERLOADED[0], BY_CV[3])
    found = (*attainments, 1.0, 0.2)
    return [
        slora.Reproduced(run, attainment, 4.0, 2.0, 7, took_s=1.5)
        for run, attainment in zip(runs, found, strict=True)
    ]


@cache
def make_live() -> LiveReport:
    """A server that is a simulator, with an overload: everything there is to show."""
    truth = sim_builders.make_profile(num_pages=120, max_running=10)
    fit = sim_builders.draw_workload(3, num_requests=20, rate_per_s=7)
    judged = sim_builders.draw_workload(4, num_requests=24, rate_per_s=30)
    bounded = (replace(one, ttft_s=0.6, tpot_s=0.06) for one in judged.requests)
    judged = replace(judged, requests=tuple(bounded))
    runs = replace(
        live_runs(fit, judged, truth),
        offered={
            "fit_capacity_per_s": 8.0,
            "fit_load": 0.85,
            "judged_capacity_per_s": 9.0,
            "judged_load": 1.3,
        },
    )
    return study(runs, simulate_live, result="bench/results/sim-cpu.json")


def make_report(
    *,
    published: Sequence[slora.Reproduced] | None = None,
    live: LiveReport | None = None,
    scale: ScaleReport | None = None,
    failed: Sequence[str] = (),
    is_quick: bool = False,
) -> Report:
    held = {"slora": published, "live": live, "scale": scale}
    not_run = {part: "left out by --only" for part in PARTS if held[part] is None}
    return Report(
        *(published, live, scale, not_run, MACHINE),
        is_quick=is_quick,
        took_s={"slora": 2.0},
        load_before=0.1,
        failed=failed,
    )


def make_scale(requests_per_s: float) -> ScaleReport:
    return ScaleReport(20_000, 2_000, requests_per_s, 60.0, 3000.0, 9, 4, "a100-7b")


def run_conclude(report: Report, folder: Path) -> tuple[int, str, Options]:
    options = replace(parse([]), result=folder / "sim-cpu.json")
    out = io.StringIO()
    code = conclude(report, options, Console(file=out, width=200))
    return code, out.getvalue(), options


# Options


def test_a_whole_run_is_the_committed_result_and_no_other_is() -> None:
    assert parse([]).parts == PARTS
    assert parse([]).result.parts[-3:] == ("bench", "results", "sim-cpu.json")
    assert parse(["--scale", "100000"]).result == parse([]).result
    for argv in (
        *(["--only", "slora"], ["--quick"], ["--only", "live", "--only", "scale"]),
        ["--scale", "123"],  # regression: the committed speed was then of 123 requests
    ):
        assert parse(argv).result.parts[-3:] == ("build", "sim", "sim-cpu.json"), argv
    assert parse(["--device", "cuda:1"]).result.name == "sim-cuda.json"


def test_parts_run_in_their_own_order() -> None:
    assert parse(["--only", "scale", "--only", "slora"]).parts == ("slora", "scale")
    assert parse(["--scale", "123"]).num_requests == 123
    assert parse(["--quick"]).num_requests < parse([]).num_requests


@pytest.mark.parametrize("argv", [["--only", "speed"], ["--scale", "-1"]])
def test_what_cannot_be_run_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert argv[1] in capsys.readouterr().err


# Figures


def test_the_headline_has_every_figure_and_null_where_nothing_ran() -> None:
    found = headline(make_report(published=make_reproduced()))
    assert tuple(found) == FIGURES
    assert found["slora_attainment_fcfs"] == 0.1
    assert found["slora_attainment_early_abort"] == 0.7
    assert found["sim_vs_live_goodput"] is None
    assert found["requests_per_s_simulated"] is None


def test_the_headline_of_a_live_run_is_the_worst_policy() -> None:
    live = make_live()
    found = headline(make_report(live=live))
    ratios = [one.goodput_per_s.ratio for one in live.agreements]
    assert found["sim_vs_live_goodput"] == max(ratios, key=lambda ratio: abs(ratio - 1))
    assert found["cost_model_r2"] == live.accuracy.r2
    assert found["cost_model_mape"] == live.accuracy.mape


def test_only_what_was_claimed_can_fail() -> None:
    """A published run that is not quoted is shown as missed and fails nothing."""
    assert failures(make_report(published=make_reproduced())) == []
    (line,) = failures(make_report(published=make_reproduced((0.3, 0.7))))
    assert "attainment 0.300 simulated, 0.101 published" in line
    assert failures(make_report()) == []
    assert failures(make_report(scale=make_scale(167.0))) == []
    (line,) = failures(make_report(scale=make_scale(166.0)))
    assert line.startswith("speed: 166 requests/s simulated; at least 167")


# What is printed and written


def test_the_last_line_is_json_with_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, options = run_conclude(make_report(published=make_reproduced()), tmp_path)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert set(FIGURES) <= line.keys()
    assert line["not_run"] == {"live": "left out by --only", "scale": "left out by --only"}
    assert line["failures"] == []
    assert "MISSED 0.15" in printed  # the run that is not quoted
    assert "set the profile" in printed
    held = json.loads(options.result.read_text())
    assert held["slora"]["runs"][0]["published"]["attainment"] == 0.1011
    assert held["live"] is None


def test_a_miss_is_written_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = make_report(published=make_reproduced((0.1, 0.2)))
    code, printed, options = run_conclude(report, tmp_path)
    assert code == 1
    assert "FAILED: S-LoRA, slora" in printed
    assert len(json.loads(options.result.read_text())["failures"]) == 1
    capsys.readouterr()


def test_a_part_that_failed_is_told_and_replaces_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression: the last line then said that nothing had failed, and the committed file lost
    its figures.
    """
    report, committed = make_report(failed=["live: the server died"]), parse([]).result
    code, printed, options = run_conclude(report, tmp_path)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 1
    assert "FAILED: live: the server died" in printed
    assert line["failures"] == ["live: the server died"]
    assert json.loads(options.result.read_text())["failures"] == line["failures"]
    assert place_of(report, committed).parts[-3:] == ("build", "sim", "sim-cpu.json")
    assert place_of(make_report(), committed) == committed


def test_a_quick_run_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its traces are too short for its misses to mean anything; a part that failed still counts."""
    missed = make_report(published=make_reproduced((0.1, 0.2)), is_quick=True)
    code, printed, _ = run_conclude(missed, tmp_path)
    assert code == 0
    assert "FAILED: S-LoRA, slora" in printed
    assert run_conclude(replace(missed, failed=["live: no"]), tmp_path)[0] == 1
    capsys.readouterr()


def test_a_live_run_leaves_its_stamps_its_traces_and_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure can be made again from what lies there."""
    live = make_live()
    _, printed, options = run_conclude(make_report(live=live), tmp_path)
    capsys.readouterr()
    names = sorted(path.name for path in options.raw.iterdir())
    # Traces; A live, simulated; B live, simulated; steps of all that was live; profile; pictures.
    assert len(names) == 2 + 2 + 2 + 4 + 2 + 6 + 1 + 2
    for cell in live.live.judged_cells:
        stem = f"B-{cell.policy}-live-{cell.round_idx + 1}"
        steps = read_step_log(options.raw / f"{stem}.steps.csv.gz")
        assert [step.work for step in steps] == [step.work for step in cell.steps]
    assert len(json.loads(options.result.read_text())["live"]["solos"]) == len(live.live.solos)
    stamps = read_stamps(options.raw / "B-slora-simulated.jsonl.gz")
    assert stamps.run.simulated
    assert len(stamps.run.requests) == 24
    assert not read_stamps(options.raw / "B-fcfs-live-2.jsonl.gz").run.simulated
    assert read_workload(options.raw / "B.workload.jsonl.gz") == live.live.judged
    assert read_profile(options.raw / "live-cpu.json") == live.profile
    for name in PICTURES:  # regression: a run on another device replaced those that README shows
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "Cost model on" in printed


def test_the_document_is_plain_json_with_all_there_is() -> None:
    document = make_document(make_report(published=make_reproduced(), live=make_live()))
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again == document
    assert again["live"]["policies"]["fcfs"]["goodput_per_s"]["allowed"] == 0.1
    assert len(again["live"]["runs"]) == 2 + 2 + 4 + 2
    assert again["live"]["profile"]["coefficients"]["steps_s"]["source"]


# The README


def test_the_readme_says_not_measured_where_there_is_no_file(tmp_path: Path) -> None:
    assert render_sim(tmp_path / "none.json") == "not measured"


def test_the_readme_shows_misses_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "sim-cpu.json"
    report = make_report(published=make_reproduced((0.1, 0.2)))
    path.write_text(json.dumps(make_document(report)))
    text = render_sim(path)
    assert "| slora | 6 | 1 | 0.72 | 0.20 |" in text
    assert "**missed** 0.15" in text
    assert "Live server: not measured (left out by --only)." in text
    assert "Missed: S-LoRA, slora" in text


def test_the_readme_shows_the_live_comparison(tmp_path: Path) -> None:
    path = tmp_path / "sim-cpu.json"
    path.write_text(json.dumps(make_document(make_report(live=make_live()))))
    text = render_sim(path)
    assert "| fcfs | goodput, req/s |" in text
    assert "1.3 times the capacity" in text
    assert "](bench/results/sim-cpu/ttft.png)" in text
    assert not math.isnan(make_live().accuracy.r2)


def test_a_file_of_another_bench_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "sim-cpu.json"
    path.write_text('{"bench": "slo"}')
    with pytest.raises(ReadmeError, match=r"sim-cpu\.json is no result of lorry bench sim"):
        render_sim(path)
