"""What the supervisor relies on of real processes: their signs of work, and that they leave."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from lorry.bench.storm_server import find_child, is_alive, until
from lorry.server.children import ENGINE_NAME
from lorry.tests.child_builders import make_child, spin

pytestmark = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")


def test_work_grows_while_a_child_computes_and_only_then():
    """Broken: a long start is taken for a hang, or a hang for a long start."""
    child = make_child(spin)
    assert child.conn.recv() == "up"
    before = child.work()
    assert before is not None
    asyncio.run(until(lambda: (child.work() or 0) > before, "work"))
    child.conn.send("rest")
    assert child.conn.recv() == "resting"
    asyncio.run(until(lambda: child.work() == child.work(), "rest"))
    child.conn.close()
    child.end(10.0)
    assert child.work() is None


def test_an_engine_that_hears_nothing_leaves_with_its_front_end():
    """Broken: a front end that was killed leaves an engine behind that loads its model to the
    end, and the next server finds no memory."""
    command = [sys.executable, "-P", "-m", "lorry.tests.child_builders"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        engine = find_child(parent.pid, ENGINE_NAME)
        assert engine is not None and is_alive(engine)
        parent.kill()
    asyncio.run(until(lambda: not is_alive(engine), "its end", 10.0))
