"""The process that is killed in the middle of a commit; forked by test_store_crash.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lorry.adapters.resolve import PeftResolver
from lorry.tests.adapters_builders import make_files, make_meta_model, make_store, make_tensors
from lorry.tests.adapters_builders import upload as send


def run_until(root: Path, step: str) -> None:
    """Acknowledge `kept`, then die at `step` of the commit of its next version."""
    armed = False

    def at(reached: str) -> None:
        if armed and reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    store = make_store(root, PeftResolver(make_meta_model()), at=at)
    send(store, "kept")
    (root / "acknowledged").touch()
    armed = True
    send(store, "kept", files=make_files(tensors=make_tensors(seed=1)))
