"""`lorry bench slo` from its options to its files: what is written can be judged again, and a run
that is no result replaces none."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorry.bench.slo.bounds import FixedBounds
from lorry.bench.slo.command import conclude
from lorry.bench.slo.document import make_document, stamps_path
from lorry.bench.slo.figures import figures
from lorry.bench.slo.offers import LOADS, QUICK_LOADS, Axis
from lorry.bench.slo.options import BUILD, RESULTS, Options, parse
from lorry.bench.slo.pairs import Verdict
from lorry.bench.slo.pictures import PICTURES, caption_of, draw_pictures
from lorry.bench.slo.report import Report, make_comparisons, make_rows
from lorry.bench.slo.stamp_file import read_stamps, rounded
from lorry.bench.slo.stamps import Outcome
from lorry.bench.slo.table import workload_lines
from lorry.bench.throughput.workload import Place
from lorry.bench.workload.file import read_workload
from lorry.tests.slo_builders import make_stamps
from lorry.tests.slo_run_builders import SMALL, FakeServers, make_load, make_report


@pytest.fixture(scope="module")
def report() -> Report:
    """Two rounds at twice the capacity of one request a second."""
    return make_report()


def test_defaults_of_the_full_run() -> None:
    options = parse([])
    assert (options.policies, options.is_quick) == (("fcfs", "slora"), False)
    assert (options.plan.axis, options.plan.num_rounds) == (Axis(LOADS), 3)
    assert (options.plan.num_solo_runs, options.plan.fixed) == (20, None)
    assert options.result == RESULTS / "slo-cpu.json"
    assert options.plots == RESULTS
    assert parse(["--device", "cuda:1"]).result.name == "slo-cuda.json"


def test_quick_run_replaces_no_result() -> None:
    """Two loads, 60 requests, one round; under build/, where git does not look."""
    options = parse(["--quick"])
    assert (options.plan.axis.loads, options.source.num_requests) == (QUICK_LOADS, 60)
    assert len(QUICK_LOADS) == 2
    assert options.plan.num_rounds == 1
    assert BUILD in options.result.parents
    assert options.plots == options.result.parent


def test_file_is_replayed_as_it_was_drawn() -> None:
    assert parse(["--workload", "w.jsonl"]).plan.axis == Axis()
    assert parse(["--workload", "w.jsonl", "--rates", "2,3.5"]).plan.axis == Axis((), (2.0, 3.5))
    assert parse(["--ttft", "2", "--tpot", "0.1"]).plan.fixed == FixedBounds(2.0, 0.1)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--policies", "fcfs,best"], "there is no policy 'best'; there are fcfs, slora"),
        (["--policies", "fcfs,fcfs"], "names a policy twice"),
        (["--loads", "1,0"], "0 is not above 0"),
        (["--loads", "1,nan"], "nan is not above 0"),
        (["--requests", "0"], "0 is below 1"),
        (["--ttft", "2"], "--ttft and --tpot"),
        (["--loads", "1", "--rates", "2"], "--loads and --rates"),
        (["--workload", "w", "--preset", "cpu"], "--workload and --preset"),
        (["--workload", "w", "--seed", "0"], "--workload and --seed"),
        (["--workload", "w", "--requests", "9"], "--workload and --requests"),
        (["--model", "no-such"], "--model no-such: no folder of a model"),
    ],
)
def test_wrong_options_are_named(
    argv: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert why in capsys.readouterr().err


def options_in(folder: Path, **changes: Any) -> Options:
    options = parse([])
    paths = {"result": folder / "slo.json", "plots": folder, "failed": folder / "bad" / "slo.json"}
    return replace(options, **(paths | changes))


def conclude_into(folder: Path, report: Report, **changes: Any) -> tuple[int, str, list[Path]]:
    """The exit code, what was printed, and the folders that plots went to."""
    console, drawn = Console(file=io.StringIO(), width=200), list[Path]()
    code = conclude(
        report, options_in(folder, **changes), console, draw=lambda at, *_: drawn.append(at)
    )
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue(), drawn


def test_rows_say_what_the_servers_did(report: Report) -> None:
    """Each request takes a second and two come in each: whoever waits for all of them is late at
    the end, whoever refuses is not, and at the first ones they are alike."""
    fcfs, slora = make_rows(report)
    assert (fcfs.policy, slora.policy) == ("fcfs", "slora")
    assert report.rule != FixedBounds(10.0, 0.5)
    # Requests every half second; the 12th has its first token at 12.5 s, 6.5 s after it was due.
    assert fcfs.attainment.value == slora.attainment.value == 1.0
    tight = make_report(plan=replace(SMALL, fixed=FixedBounds(3.1, 0.5)))
    fcfs, slora = make_rows(tight)
    # The k-th of `fcfs` waits (k + 1) / 2 s: 1, 1.5, ... so five are within 3.1 s.
    assert fcfs.attainment.value == pytest.approx(5 / 12)
    assert fcfs.rounds[0].num_met == 5
    # `slora` goes on answering every other one.
    assert slora.attainment.value > fcfs.attainment.value
    assert slora.outcomes["refused"] == 2 * (12 - slora.rounds[0].num_met)
    assert slora.goodput_per_s.value == pytest.approx(2.0 * slora.attainment.value, rel=0.1)


def test_comparison_is_of_rounds(report: Report) -> None:
    tight = make_report(plan=replace(SMALL, fixed=FixedBounds(3.1, 0.5)))
    found = {one.comparison.metric: one.comparison for one in make_comparisons(make_rows(tight))}
    attained = found["attainment"]
    assert (attained.a, attained.b, attained.winner) == ("fcfs", "slora", "slora")
    assert (len(attained.values_a), attained.spread) == (2, 0.0)
    assert found["TTFT median of all, s"].winner == "slora", "less is better"
    once = make_report(plan=replace(SMALL, num_rounds=1))
    verdicts = {one.comparison.verdict for one in make_comparisons(make_rows(once))}
    assert verdicts == {Verdict.NOT_MEASURED}, "one round has no spread"


def test_files_can_be_judged_again(
    tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stamps and workload lie beside the figures and give the same ones."""
    old = tmp_path / "slo" / "fcfs-9x-round1.jsonl.gz"
    old.parent.mkdir()
    old.touch()
    code, told, drawn = conclude_into(tmp_path, report)
    assert code == 0
    assert drawn == [tmp_path]
    assert not old.exists(), "a file of other loads is not of this result"
    document = json.loads((tmp_path / "slo.json").read_text())
    workload = read_workload(tmp_path / "slo" / "workload.jsonl.gz")
    assert workload == report.workload
    assert len(document["cells"]) == 4
    for cell, figured in zip(report.cells, document["cells"], strict=True):
        read = read_stamps(tmp_path / "slo" / figured["stamps"])
        assert read.run == rounded(cell.run)
        again = figures(read.run, workload, FixedBounds(1e-9, 1e-9))
        (row,) = [row for row in document["rows"] if row["policy"] == cell.run.policy]
        assert again.attainment.value == row["attainment"]["value"], "each carries its own bounds"
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["bench"] == "slo"
    assert line["rows"] == document["rows"]
    assert line["capacity"]["requests_per_s"] == pytest.approx(1.0)
    assert "ceiling, a closed loop with 3 requests always out: 1.00 requests/s" in told
    assert "A quick run" not in told


def test_quick_run_says_that_it_claims_nothing(tmp_path: Path, report: Report) -> None:
    code, told, _ = conclude_into(tmp_path, replace(report, is_quick=True))
    assert code == 0
    assert "A quick run: too few requests to say anything about these rates" in told


def broken(report: Report) -> Report:
    """One request of the first cell got an error."""
    first, *others = report.cells
    stamps = list(first.run.requests)
    stamps[3] = make_stamps(3, stamps[3].due_s, outcome=Outcome.FAILED, error="UNAVAILABLE: gone")
    cell = replace(
        first, run=replace(first.run, requests=tuple(stamps)), failures=("1 requests failed",)
    )
    return replace(report, cells=(cell, *others))


def test_failed_cell_fails_the_run_and_replaces_nothing(
    tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slo.json").write_text("the result of before")
    code, told, drawn = conclude_into(tmp_path, broken(report))
    assert code == 1
    assert "FAILED: round 1, 2x, fcfs: 1 requests failed" in told
    assert (tmp_path / "slo.json").read_text() == "the result of before"
    assert drawn == [tmp_path / "bad"]
    left = json.loads((tmp_path / "bad" / "slo.json").read_text())
    assert left["failures"] == ["round 1, 2x, fcfs: 1 requests failed"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failures"] == left["failures"]


def test_cell_with_lost_requests_has_no_row(report: Report) -> None:
    """Its figures would be those of the requests that are left."""
    first, *others = report.cells
    cut = replace(first, run=replace(first.run, requests=first.run.requests[:-1]), failures=("!",))
    fcfs, slora = make_rows(replace(report, cells=(cut, *others)))
    assert (fcfs.num_rounds, slora.num_rounds) == (1, 2)
    assert make_comparisons((fcfs, slora)) == (), "no pairs"


def test_document_holds_no_nan(report: Report) -> None:
    """Nobody got a token: most readers of JSON refuse NaN."""
    nobody = replace(
        report,
        cells=tuple(
            replace(
                cell,
                run=replace(
                    cell.run,
                    requests=tuple(
                        make_stamps(one.index, one.due_s, outcome=Outcome.TIMEOUT, end_s=99.0)
                        for one in cell.run.requests
                    ),
                ),
            )
            for cell in report.cells
        ),
    )
    assert math.isnan(make_rows(nobody)[0].ttft_p50_s)
    text = json.dumps(make_document(nobody, folder=Path("x")), allow_nan=False)
    assert json.loads(text)["rows"][0]["ttft_p50_s"] is None


def test_stamps_are_named_by_their_cell(report: Report) -> None:
    paths = [
        stamps_path(Path("x"), cell, report.offers[cell.turn.offer_idx]).name
        for cell in report.cells
    ]
    assert paths == [
        "fcfs-2x-round1.jsonl.gz",
        "slora-2x-round1.jsonl.gz",
        "slora-2x-round2.jsonl.gz",
        "fcfs-2x-round2.jsonl.gz",
    ]


def test_what_drawing_changed_is_told() -> None:
    told = list(workload_lines(make_load(), {"prompts_cut": 3, "answers_cut": 0}))
    assert told[-1] == "prompts cut: 3"
    assert len(list(workload_lines(make_load(), {}))) == len(told) - 1


def test_pictures_name_the_device_that_served(report: Report) -> None:
    assert caption_of(report).line == "a fake, a cpu, commit abc"
    on_gpu = replace(report, place=Place("cuda:0"), machine=replace(report.machine, gpu="a gpu"))
    assert caption_of(on_gpu).device == "a gpu"


def test_plots_are_drawn(tmp_path: Path, report: Report) -> None:
    draw_pictures(tmp_path, report, make_rows(report))
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_fake_servers_are_asked_in_order() -> None:
    """Alone first, then every server made ready, then the cells."""
    fake = FakeServers()
    make_report(fake)
    alone, loops, ready = ["ask fcfs"], ["ask fcfs", "ask slora"], ["ask fcfs", "ask slora"]
    assert fake.log[:6] == [*alone, *loops, *ready, "settle fcfs"]
