"""The recording server that the tests of the commands talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lorry.tests.proto_builders import FakeServer


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """It has heard nothing yet, and is where commands look for a server."""
    shared.heard.__init__()
    monkeypatch.setenv("LORRY_ADDRESS", shared.address)
    return shared
