"""Stamps in a file: nothing is lost but what lies below a microsecond."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.bench.slo.stamp_file import (
    StampFileError,
    read_stamps,
    rounded,
    workload_digest,
    write_stamps,
)
from lorry.bench.slo.stamps import Outcome, RequestStamps, Run
from lorry.tests.slo_builders import MACHINE, make_request, make_run, make_stamps, make_workload

INSTANTS = st.floats(-10, 1e5)
INSTANT_FIELDS = ("due_s", "sent_s", "end_s", "piece_s")


@st.composite
def any_stamps(draw: st.DrawFn) -> RequestStamps:
    pieces = draw(st.lists(st.tuples(INSTANTS, st.integers(1, 3)), max_size=4))
    return RequestStamps(
        index=draw(st.integers(0, 10**6)),
        due_s=draw(INSTANTS),
        sent_s=draw(INSTANTS),
        outcome=draw(st.sampled_from(Outcome)),
        end_s=draw(INSTANTS),
        piece_s=tuple(at_s for at_s, _ in pieces),
        piece_tokens=tuple(count for _, count in pieces),
        error=draw(st.text('aß"\n', max_size=4)),
    )


@given(st.lists(any_stamps(), max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, requests: list[RequestStamps], simulated: bool
) -> None:
    """Steps add up to the same microsecond, whatever stands in front of them."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl.gz"
    run, workload = Run("slora", tuple(requests), simulated=simulated), make_workload()
    write_stamps(path, run, workload, machine=MACHINE)
    found = read_stamps(path)
    assert found.run == rounded(run) == rounded(rounded(run))
    assert (found.workload, found.workload_digest) == ("made", workload_digest(workload))
    assert found.machine == MACHINE
    for ours, theirs in zip(run.requests, found.run.requests, strict=True):
        instants = {name: getattr(ours, name) for name in INSTANT_FIELDS}
        for name, value in instants.items():
            assert getattr(theirs, name) == pytest.approx(value, abs=6e-7)
        assert replace(theirs, **instants) == ours


def test_same_run_same_bytes(tmp_path: Path) -> None:
    """A date or a name inside would make every committed file new."""
    run = make_run(make_stamps(0, 1.0, (1.5, 2.0)))
    for name in ("one", "other"):
        write_stamps(tmp_path / name, run, make_workload(), machine=MACHINE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    header = (tmp_path / "one").read_bytes()[:10]
    assert header[4:8] == bytes(4) and not header[3] & 8  # no time, no name


def test_digest_tells_workloads_apart() -> None:
    """The bounds too: stamps judged by others than were sent say something else."""
    plain = make_workload([make_request()])
    others = [
        make_workload([make_request(0.001)]),
        make_workload([make_request(ttft_s=1.0)]),
        make_workload([make_request(num_new_tokens=5)]),
        make_workload([make_request()] * 2),
    ]
    digests = {workload_digest(one) for one in (plain, *others)}
    assert len(digests) == 5


def test_what_is_no_stamp_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    run = make_run(make_stamps(0, 0.0, (1.0,)), make_stamps(1, 1.0, (2.0,)))
    write_stamps(path, run, make_workload(), machine=MACHINE)
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    bad = {
        "cut": whole[:-12],
        "plain": b"hello",
        "short": gzip.compress(b"".join(lines[:-1])),
        "other": gzip.compress(b'{"format":"lorry-stamps-9"}\n'),
        "empty": gzip.compress(b""),
        "torn": gzip.compress(b"".join(lines)[:-5]),
    }
    for name, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(StampFileError, match=r"x\.jsonl\.gz"):
            read_stamps(path)
            pytest.fail(f"{name} was read")
    with pytest.raises(StampFileError, match="none"):
        read_stamps(tmp_path / "none")
