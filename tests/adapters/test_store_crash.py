"""Killed at every step of a commit: what was acknowledged stays, nothing is half there."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from lorry.adapters.image_file import read_image
from lorry.adapters.resolve import PeftResolver
from lorry.tests.adapters.crash_child import run_until
from lorry.tests.adapters_builders import (
    TENANT,
    make_files,
    make_store,
    make_tensors,
    upload,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Children are forked from one process that has the imports done."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["lorry.tests.adapters.crash_child"])
    return forkserver


@pytest.mark.parametrize("step", ["received", "packed", "moved", "synced", "committed"])
def test_a_kill_leaves_the_old_version_or_the_new_one_whole(
    context: ForkServerContext, tmp_path: Path, resolver: PeftResolver, step: str
) -> None:
    """A half-stored adapter would be served, or an acknowledged one lost."""
    root = tmp_path / "store"
    child = context.Process(target=run_until, args=(root, step))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert (root / "acknowledged").exists()

    store = make_store(root, resolver)
    try:
        store.sweep(())
        card = store.get(TENANT, "kept")
        assert card.key.version == (2 if step == "committed" else 1)
        assert read_image(card.image_path).layout.num_pages == card.num_pages
        # The version in use, whole, and no other file.
        (blob,) = (root / "blobs").iterdir()
        assert blob.name == card.key.content_hash
        assert sorted(path.name for path in blob.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert len(list((root / "images").glob("*/*"))) == 1
        assert list((root / "incoming").iterdir()) == []

        again = upload(store, "kept", files=make_files(tensors=make_tensors(seed=2)))
        assert again.card.key.version == card.key.version + 1
    finally:
        store.close()
