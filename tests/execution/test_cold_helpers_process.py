"""A helper as a process: on its core, asleep, stopped or killed in mid-errand, ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lorry.adapters.host_tier import HeldImage
from lorry.server.clock import MonotonicClock
from lorry.server.execution.cold_start.handover import Errand
from lorry.server.execution.cold_start.helpers import Helpers
from lorry.tests.helper_builders import (
    NUM_LAYERS,
    SITES,
    WITHIN_S,
    ColdSlab,
    assert_answered,
    await_passed,
    leave_with_a_helper,
    rows_of,
)

ERRAND = Errand(1, (0, 1), 5, 45)
PATIENCE_S = 0.02  # with a helper that was stopped


@dataclass(frozen=True, slots=True)
class World:
    slab: ColdSlab
    image: HeldImage  # of slot 1
    helpers: Helpers
    core: int

    @property
    def pid(self) -> int:
        pid = self.helpers.crew.pids[0]
        assert pid is not None
        return pid

    def assert_answers(self) -> None:
        self.helpers.crew.patience_s = WITHIN_S
        assert self.helpers.crew.await_up(WITHIN_S) == 1
        assert_answered(self.helpers, self.slab, self.image, ERRAND)

    def halt(self) -> None:
        """Stopped when this returns, whatever it was at."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One helper, on the last core: a process takes two seconds to load torch."""
    slab, core = ColdSlab(), max(os.sched_getaffinity(0))
    helpers = Helpers(slab.cells, SITES, [core], num_layers=NUM_LAYERS, max_tokens=64)
    image = slab.put({0: 5, 1: 33, 2: 16})
    helpers.open(1, image)
    world = World(slab, image, helpers, core)
    try:
        yield world
        pid = world.pid
    finally:
        helpers.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_answers_from_its_own_core_and_sleeps_in_between(world: World) -> None:
    world.assert_answers()
    assert os.sched_getaffinity(world.pid) == {world.core}
    clock = MonotonicClock()
    end_s = clock.now_s() + WITHIN_S
    while _state(world.pid) != "S":
        assert clock.now_s() < end_s


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_one_that_was_stopped_is_passed_over_until_it_goes_on(world: World) -> None:
    world.assert_answers()
    crew = world.helpers.crew
    hidden_TI, outs_TO = rows_of(world.slab, ERRAND)
    before = [out.clone() for out in outs_TO]
    world.halt()
    crew.patience_s = PATIENCE_S
    ticket = world.helpers.send(ERRAND, hidden_TI)
    assert ticket is not None
    assert not ticket.add(outs_TO)
    assert world.helpers.send(ERRAND, hidden_TI) is None
    os.kill(world.pid, signal.SIGCONT)
    await_passed(world.helpers)
    assert all(torch.equal(out, old) for out, old in zip(outs_TO, before, strict=True))
    assert world.helpers.lost() == {1}
    assert crew.stats().num_restarts == 0
    world.assert_answers()


def test_one_that_is_killed_in_mid_errand_is_noticed_and_replaced(world: World) -> None:
    """Its end is what is noticed, not the patience: that is a minute here."""
    world.assert_answers()
    member = world.helpers.crew.members[0]
    hidden_TI, outs_TO = rows_of(world.slab, ERRAND)
    before = [out.clone() for out in outs_TO]
    world.halt()
    ticket = world.helpers.send(ERRAND, hidden_TI)
    assert ticket is not None
    os.kill(world.pid, signal.SIGKILL)
    assert not ticket.add(outs_TO)
    assert member.is_over
    assert all(torch.equal(out, old) for out, old in zip(outs_TO, before, strict=True))
    assert world.helpers.send(ERRAND, hidden_TI) is None
    assert world.helpers.lost() == {1}
    world.assert_answers()
    assert world.helpers.stats().num_restarts == 1


@pytest.mark.slow
def test_who_ends_without_a_word_does_not_wait_for_its_helpers() -> None:
    """An engine that had failed was never over: it waited for helpers that hear no SIGTERM, and
    its clients for the end of its pipe."""
    context, clock = multiprocessing.get_context("spawn"), MonotonicClock()
    conn, theirs = context.Pipe()
    process = context.Process(target=leave_with_a_helper, args=(theirs,))
    process.start()
    try:
        assert conn.poll(WITHIN_S)
        pid: int = conn.recv()
        end_s = clock.now_s() + WITHIN_S
        while Path(f"/proc/{pid}/comm").read_text().strip() != "lorry-helper":  # deaf from here on
            assert clock.now_s() < end_s
        conn.send("end")
        process.join(WITHIN_S)
        assert process.exitcode == 0
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
