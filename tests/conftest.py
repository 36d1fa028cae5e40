"""What every room's tests share: one thread for torch, so that tests are alike on any machine.

Random tests keep their own seeds: hypothesis is derandomized and prints the failing example, the
fuzzer names the seed of a failed life. Memory is poisoned by the builders, not by a fixture: a
pool of theirs is NaN before its first page is leased, and the engines they build poison what is
freed (`debug=True`, and `FakePages` in the same way), so there is nothing to patch in.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

SERVICE = "tests/service/"

torch.set_num_threads(1)

# Triton reads this when a kernel is decorated. On a GPU kernels are compiled: `make gpu` runs the
# tests marked `gpu` there, which are others than the interpreted ones, in sizes of real models.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of real servers first: they take longest, and the other worker has the rest."""
    items.sort(key=lambda item: not item.nodeid.startswith(SERVICE))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests are spread over workers (`make test`), a file stays whole, for its fixtures, and
    so do all tests that share the one server."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SERVICE if nodeid.startswith(SERVICE) else nodeid.split("::", 1)[0]

    return ByFixture(config, log)
