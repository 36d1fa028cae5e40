"""How the store's process refuses to start: at once, and in one line the operator can use."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from lorry.adapters.limits import StoreLimits
from lorry.adapters.store_files import StoreLock
from lorry.server.errors import ConfigError, LorryError, ModelRefused
from lorry.server.store_messages import StoreFailed
from lorry.server.store_worker import run_store_worker
from lorry.tests.adapters_builders import make_llama_config

LIMITS = StoreLimits(max_upload_bytes=1 << 20, max_rank=64)


def start_in_vain(root: Path, model_dir: str) -> LorryError:
    ours, theirs = multiprocessing.Pipe()
    run_store_worker(theirs, root, model_dir, LIMITS)
    assert ours.poll(30)
    answer = ours.recv()
    ours.close()
    theirs.close()
    assert isinstance(answer, StoreFailed)
    return answer.error


def test_a_store_that_cannot_open_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator would read thirty lines of ours for one mistyped path of his."""
    model_dir = str(tmp_path / "whole")
    make_llama_config().save_pretrained(model_dir)
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "old").mkdir()
    sqlite3.connect(tmp_path / "old" / "index.sqlite").execute("PRAGMA user_version=99")
    cases = [
        ("file", model_dir, ConfigError, "store", "file"),
        ("old", model_dir, ConfigError, "store", "form 99"),
        ("new", str(tmp_path / "missing"), ConfigError, "model", "no such directory"),
        ("new", "a/b/c", ConfigError, "model", "no such directory"),
        ("new", str(tmp_path / "model"), ModelRefused, "model", "cannot be read"),
    ]
    for folder, model, kind, field, words in cases:
        error = start_in_vain(tmp_path / folder, model)
        assert (type(error), error.field) == (kind, field)
        assert words in error.message
        assert len(error.message) < 600
    assert caplog.records == []


def test_a_store_in_use_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    """The operator waited half a minute to hear it."""
    holder = StoreLock(tmp_path / "store")
    error = start_in_vain(tmp_path / "store", str(tmp_path / "no model at all"))
    assert isinstance(error, ConfigError)
    assert error.field == "store"
    assert "in use by another server" in error.message
    holder.close()
