"""One server for all tests of this folder that need no start of their own.

`shared_server` is it, once a session; `shared` hands it to a test and sees to it that the test
leaves it as it was: nobody in, every page accounted for, only the adapters of `SPECS` there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lorry.bench.cost.step_logs import read_step_log
from lorry.tests.service_shared import SharedServer, open_shared_server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with open_shared_server(tmp_path_factory.mktemp("shared")) as server:
        yield server
        stats = server.client.stats()
        server.client.close()
        assert server.process.stop() == 0, "".join(server.process.output)
        num_more = len(read_step_log(server.step_log)) - stats.steps_total
        # Of an engine that was killed the server counts what it had heard of; the log knows all.
        assert num_more >= 0 if stats.engine_restarts_total else num_more == 0, "lines are lost"


@pytest.fixture
def shared(shared_server: SharedServer) -> Iterator[SharedServer]:
    """The session's server; what a test uploads is deleted, what it leaks fails it."""
    yield shared_server
    shared_server.settle()
    shared_server.tidy()
