"""The README's generated parts: each must follow the code it tells of, and a stale one be named."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lorry.adapters.fields import FIELD_RULES
from lorry.bench import readme, readme_results, readme_tables, readme_tree
from lorry.bench.overhead import Measured
from lorry.bench.overhead import make_document as make_overhead
from lorry.bench.readme import RENDERERS, find_sections, main, refresh
from lorry.bench.readme_tables import ReadmeError
from lorry.bench.throughput.document import make_document
from lorry.bench.zoo.tasks import TASKS, is_held_out
from lorry.server.config import (
    ColdConfig,
    CostConfig,
    MemoryConfig,
    ModelConfig,
    SchedulingConfig,
    ServiceConfig,
)
from lorry.server.metrics import MEASURES
from lorry.server.rpc import status
from lorry.tests.bench_builders import make_report, make_row

PAGE = """# A page

<!-- generated: zoo -->
<!-- end -->
between
<!-- generated: status -->
old
<!-- end -->
after
"""


def cells(table: str) -> list[list[str]]:
    """The rows below the heading, without the marks around code."""
    lines = table.splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line[1:-1].split(" | ")] for line in lines]


def write_page(tmp_path: Path, text: str = PAGE) -> Path:
    path = tmp_path / "README.md"
    path.write_text(text)
    return path


def test_written_page_is_current_and_keeps_what_is_not_generated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run that changes something would make every check fail for ever."""
    path = write_page(tmp_path)
    assert main(["--check"], path=path) == 1
    assert path.read_text() == PAGE, "a check writes nothing"
    assert main([], path=path) == 0
    written = path.read_text()
    assert readme_tables.render_zoo() in written
    assert "old" not in written
    assert [line for line in PAGE.splitlines() if line and line != "old"] == [
        line for line in written.splitlines() if line and not line.startswith("|")
    ]
    capsys.readouterr()
    assert main(["--check"], path=path) == 0
    assert capsys.readouterr().err == ""
    assert main([], path=path) == 0
    assert path.read_text() == written


def test_check_names_the_one_stale_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure typed into a generated table would be believed."""
    path = write_page(tmp_path)
    main([], path=path)
    path.write_text(path.read_text().replace("`INTERNAL`", "`UNKNOWN`", 1))
    capsys.readouterr()
    assert main(["--check"], path=path) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "section status is not current" in said[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- generated: weather -->\n<!-- end -->", "line 1 asks for weather; there are config"),
        ("<!-- generated: zoo -->\n", "section zoo, opened on line 1, is never closed"),
        (
            "<!-- generated: zoo -->\n<!-- generated: tree -->\n<!-- end -->",
            "line 2 opens tree before zoo was closed",
        ),
        ("\n<!-- end -->", "line 2 closes a section that was never opened"),
        ("no marker", "no line reads"),
    ],
    ids=["unknown", "unclosed", "nested", "unopened", "none"],
)
def test_wrong_marker_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    """A mistyped marker would leave its section as it is, or eat the page to its end."""
    path = write_page(tmp_path, text)
    assert main(["--check"], path=path) == 1
    assert main([], path=path) == 1
    assert complaint in capsys.readouterr().err
    assert path.read_text() == text


def test_missing_page_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback does not say which file was looked for."""
    assert main(["--check"], path=tmp_path / "README.md") == 1
    assert capsys.readouterr().err.startswith("README.md: ")


def test_sections_of_unequal_length_do_not_shift_each_other() -> None:
    """Filling the first moves the lines of the second."""
    renderers = {"a": lambda: "1\n2\n3", "b": lambda: "4"}
    text = "<!-- generated: a -->\n<!-- end -->\nx\n<!-- generated: b -->\ny\nz\n<!-- end -->\n"
    filled, stale = refresh(text, renderers)
    assert [section.name for section in stale] == ["a", "b"]
    assert " ".join(filled.split()) == (
        "<!-- generated: a --> 1 2 3 <!-- end --> x <!-- generated: b --> 4 <!-- end -->"
    )
    assert [section.name for section in find_sections(filled.splitlines(), renderers)] == ["a", "b"]


def test_every_section_is_the_same_twice() -> None:
    """An order taken from a set would make the check fail on some days."""
    assert {name: render() for name, render in RENDERERS.items()} == {
        name: render() for name, render in RENDERERS.items()
    }


def test_config_has_every_field_of_the_configuration() -> None:
    """A flag that the page leaves out is found by nobody."""
    flags = [row[0] for row in cells(readme_tables.render_config())]
    configs = (ModelConfig, MemoryConfig, ColdConfig, SchedulingConfig, ServiceConfig, CostConfig)
    names = [field.name for config in configs for field in fields(config)] + ["debug"]
    # Durations lose their unit, rates keep theirs.
    names = [re.sub("(?<!per)_s$", "", name.removeprefix("num_")) for name in names]
    expected = ["--" + name.replace("_", "-") for name in names]
    assert flags == expected
    assert set(readme_tables.FLAG_UNITS) == set(expected), "a unit of a flag that is gone"


def test_config_shows_defaults_as_they_are_typed() -> None:
    """The default of a size is read in GiB, and a switch has none to type."""
    defaults = {row[0]: row[1] for row in cells(readme_tables.render_config())}
    assert defaults["--model"] == "required"
    assert defaults["--host-bytes"] == "2GiB"
    assert defaults["--tpot"] == f"{SchedulingConfig().tpot_s:g}"
    assert defaults["--debug"] == "off"


def test_flag_without_a_unit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new flag would go in with an empty cell."""
    monkeypatch.delitem(readme_tables.FLAG_UNITS, "--ttft")
    with pytest.raises(ReadmeError, match="--ttft has no unit"):
        readme_tables.render_config()


def test_peft_fields_has_every_rule_with_its_reason() -> None:
    """A refused field without its reason sends its owner to the source."""
    rows = cells(readme_tables.render_peft_fields())
    assert [row[0] for row in rows] == list(FIELD_RULES)
    by_name = {row[0]: row for row in rows}
    assert by_name["use_dora"][1] == "refused"
    assert by_name["use_dora"][3] == FIELD_RULES["use_dora"].why
    assert by_name["r"][1] == "applied"


def test_zoo_has_every_task_and_a_word_that_proves_something() -> None:
    """A word that training saw, or that a task leaves unchanged, is no example."""
    rows = cells(readme_tables.render_zoo())
    assert [row[0] for row in rows] == [task.name for task in TASKS]
    assert {row[0]: row[4] for row in rows}["reverse"] == readme_tables.EXAMPLE_WORD[::-1]
    assert is_held_out(readme_tables.EXAMPLE_WORD)
    assert all(row[4] != readme_tables.EXAMPLE_WORD for row in rows)
    ranks = {row[0]: row[1] for row in rows}
    assert ranks["sort"] == "32 (rsLoRA)"
    assert "`q_proj` 24" in ranks["unzip"]


def test_bar_inside_a_cell_does_not_end_it() -> None:
    """The pattern of one adapter holds bars, which would tear its row apart."""
    row = next(line for line in readme_tables.render_zoo().splitlines() if "`rotate`" in line)
    assert row.replace(r"\|", "").count("|") == 6


RESULTS = {
    "throughput": readme_results.render_throughput,
    "overhead": readme_results.render_overhead,
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_that_nothing_was_measured(tmp_path: Path, name: str) -> None:
    """An empty table would read as a result."""
    assert RESULTS[name](tmp_path / "none.json") == "not measured"


def test_overhead_reads_what_the_bench_writes(tmp_path: Path) -> None:
    """The two files agree on the document's fields, or the page cannot be made."""
    path = tmp_path / "result.json"
    document = make_overhead([Measured("lorry, base", "64 at once", (10.0, 30.4, 20.0))], [0.3], 0)
    path.write_text(json.dumps(document))
    rendered = readme_results.render_overhead(path)
    assert "| lorry, base | 20 | 10, 30, 20 | 64 at once |" in rendered
    machine = document["machine"]
    assert isinstance(machine, dict)
    assert f"`{machine['commit']}`" in rendered
    assert f"torch {machine['packages']['torch']}" in rendered
    assert machine["cpu"] in rendered


def test_throughput_reads_what_the_bench_writes(tmp_path: Path) -> None:
    """Figures, rounds, targets and the step split are the file's own, none is typed."""
    path = tmp_path / "result.json"
    rows = make_row("base", 10.0, 30.4, 20.0), make_row("hf", 8.0), make_row("lora", 11.0)
    path.write_text(json.dumps(make_document(make_report(*rows))))
    rendered = readme_results.render_throughput(path)
    assert "| row base | 20 | 10, 30, 20 | one way |" in rendered
    assert "| base over hf | 2.50 | 2.5 | 3.3 |" in rendered
    assert "| lora over base | 0.55 | 0.6 | 0.75 |" in rendered
    assert "the matrix products alone: 1000 tokens/s" in rendered
    assert "| base, decode | 20.0 | 10.0 |" in rendered
    assert "vocabulary 300; bfloat16, 2 threads" in rendered


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_result_of_another_bench_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    """A traceback names no file."""
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ReadmeError, match=rf"result\.json is no result of lorry bench {name}"):
        RESULTS[name](path)


def test_status_has_every_error_with_its_code() -> None:
    """A client writes its retries from this table."""
    rows = cells(readme_tables.render_status())
    assert [(row[0], row[1]) for row in rows] == [
        (kind.__name__, code.name) for kind, (code, _) in status.TABLE.items()
    ]
    assert all(row[3] for row in rows)
    by_name = {row[0]: row for row in rows}
    if status.has_details():
        assert "RetryInfo" in by_name["Overloaded"][2]
        assert by_name["InvalidRequest"][2] == "BadRequest"


def test_metrics_has_what_is_exported() -> None:
    """An alarm is written from this table, on the name as it is scraped."""
    rows = cells(readme_tables.render_metrics())
    names = [row[0] for row in rows]
    assert names[-len(MEASURES) :] == [measure.name for measure in MEASURES]
    assert names[:3] == ["lorry_up", "lorry_uptime_seconds", "lorry_engine_restarts_total"]
    units = {row[0]: (row[1], row[2]) for row in rows}
    assert units["lorry_host_bytes"] == ("gauge", "bytes")
    assert units["lorry_decode_tokens_total"] == ("counter", "tokens")


def test_metric_without_a_unit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number without a unit cannot be compared with anything."""
    monkeypatch.setattr(readme_tables, "METRIC_UNITS", ("seconds",))
    with pytest.raises(ReadmeError, match="has no unit"):
        readme_tables.render_metrics()


def test_tree_lists_packages_and_names_tests(tmp_path: Path) -> None:
    """A file missing here has no line; a generated one or a stray folder must not get one."""
    texts = {
        "Makefile": "",
        "room/__init__.py": '"""The room: who owns it. Not said."""',
        "room/table.py": '"""A table, 4.2 m\n    long.\n\n    More."""',
        "room/inner/__init__.py": '"""Inside."""',
        "room/inner/chair.py": '"""A chair."""',
        "room/wire_pb2.py": '"""Generated."""',
        "build/lib/copy.py": '"""A copy."""',
        "tests/test_house.py": "def test_a(): pass",
        "tests/room/test_table.py": (
            "def test_a(): pass\ndef make(): pass\nclass TestB:\n    def test_c(self): pass\n"
        ),
        "tests/room/deep/test_leg.py": "async def test_d(): pass",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = readme_tree.render_tree(tmp_path).splitlines()
    assert [" ".join(line.split()) for line in lines[1:-1]] == [
        f"Makefile {readme_tree.OTHER_FILES['Makefile']}",
        "room/ The room: who owns it.",
        "table.py A table, 4.2 m long.",
        "room/inner/ Inside.",
        "chair.py A chair.",
        "tests/ A mirror of the rooms; on the whole house: house.",
        "room/ leg, table.",
    ]


def test_tree_of_the_repository_describes_what_is_there() -> None:
    """A file renamed or added would keep its old line, or have none."""
    root = readme_tree.ROOT_DIR
    for name in readme_tree.OTHER_FILES:
        # Results come and go with the measurements.
        assert (root / name).exists() or name == "bench/results/", f"{name} is gone"
    lines = readme_tree.render_tree().splitlines()[1:-1]
    silent = [line for line in lines if len(line.split(maxsplit=1)) < 2]
    assert silent == []
    assert len([line for line in lines if line.split()[0] == "readme_tree.py"]) == 1


def test_long_sentence_ends_at_a_word() -> None:
    """A line cut inside a word reads as a mistake."""
    sentence = readme_tree.first_sentence("word " * 30 + "end. Next.")
    assert sentence.endswith("word ...")
    assert len(sentence) <= readme_tree.MAX_SENTENCE_CHARS
    assert readme_tree.first_sentence("Short: all\nof it. Next.") == "Short: all of it."


def test_page_of_this_repository_is_the_one_checked() -> None:
    """The path is found from the file, wherever the command is started."""
    assert (readme.README_PATH.parent / "pyproject.toml").is_file()
