"""The committed wire code is what the compiler gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorry.proto import generate, lorry_pb2

pytest.importorskip("grpc_tools", reason="grpcio-tools (lorry[dev]) is not installed")


def test_committed_code_equals_regeneration() -> None:
    """A lorry.proto changed without regeneration would serve the old wire."""
    assert generate.stale(generate.generate()) == []


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    """A check that compares nothing passes always."""
    texts = generate.generate()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert generate.stale(texts, tmp_path) == []
    (tmp_path / "lorry_pb2.py").write_text("# other\n")
    (tmp_path / "lorry_pb2.pyi").unlink()
    assert generate.stale(texts, tmp_path) == ["lorry_pb2.py", "lorry_pb2.pyi"]


def test_code_asks_for_no_newer_runtime_than_the_oldest_supported() -> None:
    """A newer generator slipping in would shut out grpcio 1.73 and protobuf 6."""
    texts = generate.generate()
    demanded = re.search(r"GRPC_GENERATED_VERSION = '(\d+)\.(\d+)", texts["lorry_pb2_grpc.py"])
    gencode = re.search(r"Protobuf Python Version: (\d+)", texts["lorry_pb2.py"])
    assert demanded is not None
    assert gencode is not None
    assert (int(demanded[1]), int(demanded[2])) <= (1, 73)
    assert gencode[1] == "6"
    assert lorry_pb2.DESCRIPTOR.package == "lorry.v1"
