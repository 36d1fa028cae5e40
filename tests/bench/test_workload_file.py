"""The file of a workload: read back equal, and refused by line when anything in it is not so."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.bench.slo.bounds import FixedBounds, with_bounds
from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.file import digest_of, read_workload, write_workload
from lorry.bench.workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest
from lorry.tests.workload_builders import make_small_workload

SECONDS = st.floats(0, 1e6, allow_nan=False)
PIECES = st.builds(Piece, st.integers(0, 2**53 - 1), st.integers(1, 10**6))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    names = draw(st.lists(st.text(min_size=1, max_size=6), max_size=4, unique=True))
    adapters = tuple(
        WorkloadAdapter(name, draw(st.integers(1, 512)), 1 / len(names)) for name in names
    )
    instants = sorted(draw(st.lists(SECONDS, max_size=6)))
    requests = tuple(
        WorkloadRequest(
            at_s,
            draw(st.sampled_from(["", *names])),
            tuple(draw(st.lists(PIECES, min_size=1, max_size=4))),
            draw(st.integers(1, 10**6)),
            *draw(st.sampled_from([(-1, 0), (0, 0), (7, 3)])),
            ttft_s=draw(st.sampled_from([0.0, 0.5, 1e-9])),
            tpot_s=draw(st.sampled_from([0.0, 0.01])),
        )
        for at_s in instants
    )
    return Workload(
        draw(st.text(max_size=8)), draw(st.integers(0, 2**63)), draw(st.text()), adapters, requests
    )


@settings(max_examples=40)
@given(workload=workloads(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_any_workload_is_read_back_equal(workload: Workload, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        digest = write_workload(workload, path)
        again = read_workload(path)
        first = path.read_bytes()
        write_workload(again, path)
        assert path.read_bytes() == first
    assert again == workload
    assert digest == digest_of(workload) == digest_of(again)


def write(folder: Path, name: str = "w.jsonl") -> tuple[Path, str]:
    path = folder / name
    write_workload(make_small_workload(), path)
    return path, gzip.decompress(path.read_bytes()).decode() if name[
        -1
    ] == "z" else path.read_text()


TEXT_LINES = 5  # of the small workload: a header and four requests


@settings(max_examples=40)
@given(data=st.data())
def test_any_edited_character_is_refused_by_its_line(data: st.DataObject) -> None:
    """Also where the edited line is a right one by itself, as a rank or an instant changed."""
    with tempfile.TemporaryDirectory() as folder:
        path, text = write(Path(folder))
        place = data.draw(st.integers(0, len(text) - 2))
        new = data.draw(st.sampled_from([*'0123456789".,:{}[]aZ \n']).filter(text[place].__ne__))
        path.write_text(text[:place] + new + text[place + 1 :])
        line = text.count("\n", 0, place) + 1
        with pytest.raises(WorkloadError) as caught:
            read_workload(path)
    # A header that was changed may show only when all has been read, its count at the last line; a
    # line that was cut in two, or joined with the next one, at the count.
    wanted = {line, TEXT_LINES - 1, TEXT_LINES + 1} if "\n" in (new, text[place]) else {line}
    if line == 1:
        wanted |= {2, TEXT_LINES}
    assert any(f"line {number}:" in str(caught.value) for number in wanted)


@settings(max_examples=40)
@given(data=st.data(), name=st.sampled_from(["w.jsonl", "w.jsonl.gz"]))
def test_a_file_cut_short_anywhere_is_refused(data: st.DataObject, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write(Path(folder), name)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(WorkloadError, match=r"w\.jsonl"):
            read_workload(path)


def test_missing_doubled_and_swapped_lines_are_refused(tmp_path: Path) -> None:
    path, text = write(tmp_path)
    lines = text.splitlines(keepends=True)
    for changed, says in (
        ([*lines[:2], *lines[3:]], "line 4: the last of 3 requests, not 4"),
        ([*lines, lines[-1]], "line 6: the last of 5 requests, not 4"),
        ([*lines[:2], lines[3], lines[2], lines[4]], "line 3: changed since it was written"),
    ):
        path.write_text("".join(changed))
        with pytest.raises(WorkloadError, match=says):
            read_workload(path)


def test_the_bytes_depend_on_the_workload_alone(tmp_path: Path) -> None:
    """Neither the name of the file nor the hour are in a gzipped one."""
    first, _ = write(tmp_path, "a.jsonl.gz")
    second, _ = write(tmp_path, "b.jsonl.gz")
    assert first.read_bytes() == second.read_bytes()


def test_the_digest_is_of_everything() -> None:
    workload = make_small_workload()
    changed = (
        replace(workload, name="other"),
        replace(workload, seed=4),
        replace(workload, recipe=""),
        replace(workload, requests=workload.requests[:-1]),
        replace(workload, adapters=(replace(workload.adapters[0], rank=16), workload.adapters[1])),
        with_bounds(workload, FixedBounds(1.0, 0.1)),
    )
    assert len({digest_of(item) for item in (workload, *changed)}) == 1 + len(changed)


def test_a_line_is_plain_json_without_what_says_nothing(tmp_path: Path) -> None:
    _, text = write(tmp_path)
    tree = json.loads(text.splitlines()[1])
    assert list(tree) == ["at_s", "adapter", "prompt", "num_new_tokens", "mark"]
    assert tree["prompt"] == [[1, 5]]


A, B, *_ = make_small_workload().requests


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ((replace(A, at_s=2.0), B), "request 1: at_s 0.25 must be finite and not before 2.0"),
        ((replace(A, at_s=float("nan")),), "request 0: at_s nan"),
        ((replace(A, adapter="c"),), "request 0: adapter 'c' is none of the workload's"),
        ((replace(A, prompt=()),), "request 0: prompt must have a piece"),
        ((replace(A, prompt=(Piece(1, 0),)),), "request 0: a piece of 0 tokens"),
        ((replace(A, prompt=(Piece(-1, 4),)),), "request 0: seed -1"),
        ((replace(A, num_new_tokens=0),), "request 0: num_new_tokens 0"),
        ((replace(A, session=-2),), "request 0: session -2"),
        ((replace(A, turn=1),), "request 0: turn 1 of session -1"),
        ((replace(A, ttft_s=-1.0),), "request 0: ttft_s -1.0"),
        ((replace(A, tpot_s=float("inf")),), "request 0: tpot_s inf"),
    ],
)
def test_a_workload_that_cannot_be_is_not_written(
    tmp_path: Path, requests: tuple[WorkloadRequest, ...], says: str
) -> None:
    path = tmp_path / "w.jsonl"
    with pytest.raises(WorkloadError, match=says):
        write_workload(replace(make_small_workload(), requests=requests), path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ((("a", 8, 0.5), ("a", 8, 0.5)), "a name stands there twice"),
        ((("", 8, 1.0),), "an empty name means the base"),
        ((("a", 0, 1.0),), "adapter a: rank 0"),
        ((("a", 8, 1.5),), "adapter a: weight 1.5"),
        ((("a", 8, 0.5),), "weights add up to 0.5"),
    ],
)
def test_adapters_that_cannot_be_are_not_written(
    tmp_path: Path, adapters: tuple[tuple[str, int, float], ...], says: str
) -> None:
    records = tuple(WorkloadAdapter(*adapter) for adapter in adapters)
    with pytest.raises(WorkloadError, match=says):
        write_workload(Workload("w", 0, "", records, ()), tmp_path / "w.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"version":1', '"version":2', "line 1: version 2, known is 1"),
        ("lorry-workload", "lorry-x", "line 1: format 'lorry-x'"),
        ('"seed":3', '"seed":3.5', "line 1: seed 3.5 is not a whole number"),
        ('"seed":3,', "", "line 1: no field seed"),
        ('"seed":3', '"seed":3,"more":1', "line 1: field 'more' is not known"),
        ('["a",8,0.75]', '["a",8]', "line 1: adapters: .* is no name, rank and weight"),
        ("0.75", "0.85", "line 1: adapters: weights add up to 1.1"),
    ],
)
def test_headers_of_another_kind_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    path, text = write(tmp_path)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(WorkloadError, match=says):
        read_workload(path)


def test_a_file_that_is_not_there_or_not_gzipped_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="gone"):
        read_workload(tmp_path / "gone.jsonl")
    (tmp_path / "w.gz").write_bytes(b"no gzip")
    with pytest.raises(WorkloadError, match=r"w\.gz"):
        read_workload(tmp_path / "w.gz")
