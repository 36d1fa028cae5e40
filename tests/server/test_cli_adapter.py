"""`lorry adapter`, run in this process against a recording server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.server.cli import main
from lorry.tests.proto_builders import FakeServer, make_peft_directory

NOBODY = "127.0.0.1:1"


Captured = pytest.CaptureFixture[str]


def test_upload_goes_on_after_a_refusal_and_tells_at_the_end(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """One bad adapter in a folder of hundreds must not keep the others back."""
    names = ["first", "bad", "empty", "last"]
    folders = [make_peft_directory(tmp_path / name) for name in names]
    (folders[2] / "adapter_config.json").unlink()
    assert main(["adapter", "upload", *map(str, folders)]) == 1
    out, err = capsys.readouterr()
    assert [header.name for header in server.heard.headers] == ["first", "bad", "last"]
    assert "first" in out
    assert "last" in out
    assert "use_dora is true" in err
    assert "adapter_config.json" in err
    assert "trained on another base" in err


def test_two_directories_of_one_name_are_refused_before_anything_is_sent(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """The second would replace the first, and both be listed as stored."""
    folders = [make_peft_directory(tmp_path / run / "final") for run in ("d1", "d2")]
    assert main(["adapter", "upload", *map(str, folders)]) == 2
    assert server.heard.headers == []
    err = capsys.readouterr().err
    assert str(folders[0]) in err
    assert str(folders[1]) in err


def test_upload_json_lists_stored_and_failed(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """A script needs both lists, with the directory of each failure."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("good", "bad")]
    assert main(["adapter", "upload", "--json", *folders]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [adapter["name"] for adapter in document["adapters"]] == ["good"]
    (failure,) = document["failed"]
    assert failure["directory"] == folders[1]
    assert failure["error"]["field"] == "use_dora"


def test_a_local_fault_alone_is_bad_usage(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """The server never said no: nothing was sent."""
    assert main(["adapter", "upload", str(tmp_path / "none")]) == 2
    assert "not a directory" in capsys.readouterr().err


def test_upload_takes_a_name_for_one_directory_only(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """Two directories under one name: the second would silently replace the first."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("x", "y")]
    assert main(["adapter", "upload", folders[0], "--name", "other"]) == 0
    assert main(["adapter", "upload", *folders, "--name", "other"]) == 2
    assert [header.name for header in server.heard.headers] == ["other"]


def test_upload_stops_when_nobody_answers(capsys: Captured, tmp_path: Path) -> None:
    """A thousand directories would wait for a thousand connections."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("x", "y")]
    assert main(["adapter", "upload", *folders, "--address", NOBODY]) == 3
    assert capsys.readouterr().err.count("can be reached") == 1


def test_list_show_and_delete(server: FakeServer, capsys: Captured) -> None:
    """Each prints what was asked, as a table and as JSON."""
    assert main(["adapter", "list", "--prefix", "a", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["adapters"]
    assert [adapter["name"] for adapter in listed] == ["a1", "a2", "a3"]
    assert main(["adapter", "list"]) == 0
    out = capsys.readouterr().out
    assert "b2" in out and "rounding" in out and "2.5e-04" in out
    assert "pool, pinned" in out and "75%" in out and "125.0 ms" in out
    assert main(["adapter", "show", "a1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_rank"] == 8
    assert main(["adapter", "show", "a1"]) == 0
    out = capsys.readouterr().out
    assert "q_proj" in out and "residency.place" in out and "PLACE_POOL" in out
    assert main(["adapter", "delete", "a1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "a1", "version": 4}
    assert main(["adapter", "delete", "a1"]) == 0
    assert "version 4" in capsys.readouterr().out


def test_prefetch_tells_where_it_is_then(server: FakeServer, capsys: Captured) -> None:
    """A pin that is left out takes nothing away; a table says what has begun."""
    assert main(["adapter", "prefetch", "a1"]) == 0
    assert capsys.readouterr().out == "a1 version 1: loading\n"
    assert main(["adapter", "prefetch", "a1", "--pin"]) == 0
    assert capsys.readouterr().out == "a1 version 1: loading, pinned\n"
    assert main(["adapter", "prefetch", "a1", "--unpin"]) == 0
    assert main(["adapter", "prefetch", "a1", "--host", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["residency"]["place"] == "PLACE_HOST"
    asked = server.heard.prefetches
    assert [r.pin if r.HasField("pin") else None for r in asked] == [None, True, False, None]
    assert asked[-1].tier == pb.TIER_HOST
    assert main(["adapter", "prefetch", "a1", "--host", "--pin"]) == 2
    assert len(server.heard.prefetches) == 4
    assert main(["adapter", "prefetch", "nope"]) == 1
