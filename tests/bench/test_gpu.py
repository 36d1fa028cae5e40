"""`make gpu`: a part that fails is told and stops no other; no figure comes of a wrong run."""

from __future__ import annotations

import io
import json
import os
import re
import select
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorry.bench.gpu.__main__ import main, run_all
from lorry.bench.gpu.parts import (
    BUDGET_S,
    Part,
    complain_of_demo,
    complain_of_tests,
    gpu_parts,
    read_tests,
)
from lorry.bench.gpu.report import (
    FIGURES,
    KERNELS_RIGHT,
    STEPS_RIGHT,
    all_proved,
    draw_figures,
    draw_parts,
    figures_of,
    is_correct,
    make_document,
)
from lorry.bench.gpu.run import FAILED, NOT_RUN, PASSED, TIMED_OUT, Outcome, run_part
from lorry.bench.gpu.wheels import carried, lacks, least_versions, numbers, read_least, unpack
from lorry.bench.machine import ROOT_DIR
from lorry.bench.readme_gpu import render_gpu
from lorry.bench.readme_tables import ReadmeError


def make_part(folder: Path, code: str, name: str = "kernels", **options: Any) -> Part:
    """`code` finds the path of its result in RESULT."""
    result = folder / f"{name}.json"
    text = f"RESULT = {str(result)!r}\n{code}"
    options = {"budget_s": 60, "result": result, "proves": True, **options}
    return Part(name, "a test", (sys.executable, "-c", text), **options)


def writes(**document: object) -> str:
    return f"open(RESULT, 'w').write({json.dumps(document)!r})"


def make_outcome(name: str, status: str = PASSED, **document: object) -> Outcome:
    part = replace(make_part(Path(), "", name), proves=name in STEPS_RIGHT)
    return Outcome(part, status, 1.0, 60.0, "", ("last",), document)


def run_here(part: Part, folder: Path, limit_s: float = 60) -> Outcome:
    return run_part(part, limit_s, folder / "log")


def test_a_part_that_ends_well_is_kept_with_what_it_wrote(tmp_path: Path) -> None:
    outcome = run_here(make_part(tmp_path, f"print('hello')\n{writes(ms=3)}"), tmp_path)
    assert (outcome.status, outcome.document) == (PASSED, {"ms": 3})
    assert outcome.last_lines == ("hello",)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "code 3"),
        ("pass", "wrote no kernels.json"),
        ("open(RESULT, 'w').write('{')", "wrote no kernels.json"),
        (writes(passed=0), "no test was run"),
    ],
)
def test_a_part_that_shows_nothing_has_failed(tmp_path: Path, code: str, reason: str) -> None:
    """Tests that were all skipped end with 0, and an old file looks like a new one."""
    part = make_part(tmp_path, code, complain=complain_of_tests)
    part.result.write_text(json.dumps({"passed": 9}))
    outcome = run_here(part, tmp_path)
    assert outcome.status == FAILED
    assert reason in outcome.reason


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """A server left behind would hold the device's memory and time in every later part."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = ("sh", "-c", f"tail -f /dev/null 9>{fifo} & echo up; wait")
    part = replace(make_part(tmp_path, ""), command=command)
    outcome = run_here(part, tmp_path, limit_s=1)
    assert (outcome.status, outcome.last_lines) == (TIMED_OUT, ("up",))
    # The end of the pipe comes when nobody is left who holds its other side.
    assert select.select([reader], [], [], 20)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_demo_without_evictions_and_tests_without_a_test_prove_nothing(tmp_path: Path) -> None:
    assert complain_of_demo({"adapter_evictions": 0, "pass": True})
    assert not complain_of_demo({"adapter_evictions": 2})
    one_skip = '<testcase classname="tests.a" name="b[1]"><skipped message="no"/></testcase>'
    for passed, complaint in ((0, "no test"), (3, "4 tests were skipped, tests.a::b[1] first")):
        (tmp_path / "tests.xml").write_text(
            f'<testsuites><testsuite tests="{5 + passed}" failures="1" errors="0" skipped="4">'
            f"{4 * one_skip}<testcase name='c'/></testsuite></testsuites>"
        )
        counts = read_tests(tmp_path / "tests.xml")
        assert counts["passed"] == passed
        assert complaint in complain_of_tests(counts)
    assert not complain_of_tests({"passed": 3, "skips": []})


def good_outcomes() -> list[Outcome]:
    figures: dict[str, dict[str, object]] = {}
    for idx, figure in enumerate(FIGURES):
        figures.setdefault(figure.part, {})[figure.name] = idx + 1
    proofs = [make_outcome(name) for name in STEPS_RIGHT]
    return [*proofs, *(make_outcome(name, **doc) for name, doc in figures.items())]


def changed(outcomes: list[Outcome], name: str, status: str) -> list[Outcome]:
    """The same with one part's end."""
    return [replace(one, status=status) if one.part.name == name else one for one in outcomes]


def test_figures_are_null_where_they_were_not_measured() -> None:
    """A figure of what was wrong in the same run, or of a part that failed, is none."""
    good = good_outcomes()
    assert list(figures_of(good).values()) == list(range(1, len(FIGURES) + 1))
    assert set(figures_of([]).values()) == {None}
    for name in STEPS_RIGHT:
        left = {key for key, value in figures_of(changed(good, name, FAILED)).items() if value}
        of_kernels = {figure.name for figure in FIGURES if figure.needs == KERNELS_RIGHT}
        assert left == (set() if name == "kernels" else of_kernels)
    half = figures_of(changed(good, "step", TIMED_OUT))
    assert {figure.part for figure in FIGURES if half[figure.name]} == {"kernel-bench"}
    without: Mapping[str, float | None] = figures_of([*good[:4], make_outcome("step", ms=3)])
    assert set(without.values()) == {None}


def test_only_parts_that_prove_something_fail_the_run() -> None:
    """A bench that found no peer must not hide that everything was right, nor the other way; and
    of a run in which nothing was to prove nobody can say that it was right."""
    good = good_outcomes()
    parts = [outcome.part for outcome in good]
    bench_failed = changed(good, "step", FAILED)
    assert all_proved(bench_failed) and is_correct(bench_failed, parts) is True
    for status, verdict in ((FAILED, False), (TIMED_OUT, False), (NOT_RUN, None)):
        bad = changed(good, "peft", status)
        assert not all_proved(bad) and is_correct(bad, parts) is verdict
    only_step = [one for one in good if one.part.name == "step"]
    assert all_proved(only_step) and is_correct(only_step, parts) is None


def test_the_tables_name_what_was_not_measured() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(draw_parts([make_outcome("step", TIMED_OUT)]))
    console.print(draw_figures(figures_of([])))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("not measured") == len(FIGURES)
    assert TIMED_OUT in text


def test_the_whole_goes_on_after_a_failure_and_writes_one_file(tmp_path: Path) -> None:
    """One part's bug would cost the session on the GPU all that was to come after it."""

    def parts(folder: Path) -> list[Part]:
        return [
            make_part(folder, "print('so bad')\nraise SystemExit(1)", "kernels"),
            make_part(folder, writes(decode_step_vs_floor=1.4), "step", proves=False),
        ]

    code = main(["--out", str(tmp_path), "--commit", "abc"], list_parts=parts, has_gpu=lambda: True)
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert code == 1
    assert [part["status"] for part in document["parts"]] == [FAILED, PASSED]
    assert document["correct"] is False
    assert document["parts"][0]["last_lines"] == ["so bad"]
    assert document["decode_step_vs_floor"] is None  # the kernels are wrong
    assert document["results"]["step"] == {"decode_step_vs_floor": 1.4}
    assert document["machine"]["commit"] == "abc"
    assert {figure.name for figure in FIGURES} <= set(document)
    assert "so bad" in (tmp_path / "gpu.log").read_text()


def test_no_part_takes_the_time_that_is_kept_for_another(tmp_path: Path) -> None:
    """Slow tests would cost the benches their figures, and what quick ones leave be lost."""
    parts = [
        make_part(tmp_path, writes(ms=1), "slow", budget_s=1),
        make_part(tmp_path, writes(ms=1), "last", budget_s=60),
    ]
    slow, last = run_all(parts, 62, tmp_path / "log", Console(file=io.StringIO()))
    assert (slow.status, last.status) == (NOT_RUN, PASSED)
    assert 60 < last.budget_s < 62


def test_the_readme_says_what_was_not_measured(tmp_path: Path) -> None:
    """A figure without a file, or of a run that could not measure it, must not read as a number."""
    path = tmp_path / "gpu.json"
    assert render_gpu(path).count("not measured") == len(FIGURES)
    outcomes = [*good_outcomes()[:4], make_outcome("step", decode_step_vs_floor=1.234)]
    machine = {"gpu": "H", "python": "3", "packages": {"torch": "2"}, "commit": ""}
    path.write_text(json.dumps(make_document(outcomes, [], machine, driver="5", seconds=9)))
    text = render_gpu(path)
    assert "1.234" in text
    assert text.count("not measured") == len(FIGURES) - 1
    path.write_text("{}")
    with pytest.raises(ReadmeError, match=r"gpu\.json"):
        render_gpu(path)


def test_without_a_gpu_it_says_so_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")], has_gpu=lambda: False) == 0
    assert "no GPU here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_parts_fit_into_eight_minutes(tmp_path: Path) -> None:
    """What proves comes first; with more promised than there is, the last would go without."""
    parts = gpu_parts(tmp_path)
    proving = [part.proves for part in parts]
    assert proving == sorted(proving, reverse=True)
    assert sum(part.budget_s for part in parts) <= BUDGET_S < 8 * 60
    assert {figure.part for figure in FIGURES} <= {part.name for part in parts}
    proofs = {part.name for part in parts if part.proves}
    assert all(set(figure.needs) <= proofs for figure in FIGURES)


def test_every_test_that_needs_a_gpu_is_in_a_part(tmp_path: Path) -> None:
    """One that `make gpu` does not name is skipped everywhere else, and so never run at all."""
    tests = ROOT_DIR / "tests"
    marked = [path for path in tests.rglob("*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    places = [
        ROOT_DIR / arg for part in gpu_parts(tmp_path) for arg in part.command if "tests/" in arg
    ]
    assert len(marked) > 5
    assert all(place.exists() for place in places)
    for path in marked:
        assert any(path.is_relative_to(place) for place in places), path


def test_wheels_are_the_needs_of_the_project_and_its_tests() -> None:
    """One that is missing ends the session on a machine where nothing can be fetched."""
    needs = {
        "lorry": ["torch>=2", "grpcio-status>=1.73", "jinja2", "ruff; extra == 'dev'"],
        "grpcio-status": ["googleapis-common-protos", "grpcio"],
        "jinja2": [
            "MarkupSafe>=2",
            "colorama; platform_system == 'Windows'",
            "tomli; python_version < '3.11'",
            "typing-extensions>=4.1; python_version < '3.13'",
        ],
        "torch": ["sympy"],
    }
    found = carried(["lorry"], needs=lambda name: needs.get(name, []))
    assert found == [
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "jinja2",
        "markupsafe",
        "typing-extensions",
    ]
    assert {"grpcio-status", "peft", "pytest", "hypothesis", "execnet"} <= set(
        carried(("lorry", "pytest", "pytest-xdist", "hypothesis"))
    )


def test_only_packages_that_are_missing_or_too_old_are_unpacked(tmp_path: Path) -> None:
    """Shadowing the machine's own would run another version than the one that fits it."""
    for name in ("here-1.0", "gone-1.0", "old-3.0"):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}.py", "")
    has = {"here": "0.9", "old": "1.9.1"}
    places = unpack(tmp_path, tmp_path / "home", {"old": "2.0"}, has=lambda name: has.get(name, ""))
    assert [place.name.partition("-")[0] for place in places] == ["gone", "old"]
    assert (places[0] / "gone.py").exists()
    assert read_least(tmp_path) == {}
    (tmp_path / "least.json").write_text('{"old": "2.0"}')
    assert read_least(tmp_path) == {"old": "2.0"}


def test_a_package_is_as_new_as_all_that_need_it_ask() -> None:
    """What is carried may need newer packages than the project does: protobuf under grpcio-status
    stopped the server at its first import."""
    needs = {
        "lorry": ["grpcio-status>=1.73", "protobuf>=6.31,<8"],
        "grpcio-status": ["protobuf<7,>=6.33.5", "pin==3", "late>=9; extra == 'x'"],
    }
    least = least_versions(["grpcio-status"], needs=lambda name: needs[name])
    assert least == {"grpcio-status": "1.73", "protobuf": "6.33.5"}
    assert numbers("6.100") > numbers(least["protobuf"]) > numbers("6.33")


def test_what_is_neither_here_nor_carried_is_named(tmp_path: Path) -> None:
    """The first missing import would end `make gpu` with a traceback, and the next one the next."""
    (tmp_path / "grpcio_status-1.73-py3-none-any.whl").write_bytes(b"")
    names = ["here", "grpcio-status", "json", "no-such-thing"]
    has = {"here": "1"}
    assert lacks(names, tmp_path, has=lambda name: has.get(name, "")) == ["no-such-thing"]
