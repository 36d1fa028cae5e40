"""How long a child stays down, and what is told meanwhile, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from lorry.server.errors import InternalError
from lorry.server.keeper import (
    MAX_DELAY_S,
    MAX_FAILED_STARTS,
    STABLE_S,
    Keeper,
    Outside,
    restart_delay_s,
)
from lorry.server.rpc.link import Ended, Outlook
from lorry.tests.fakes import FakeClock


class Lives:
    """Children whose lives last as the test says; sleeping moves the clock."""

    def __init__(self, lives_s: list[float]) -> None:
        self.clock = FakeClock()
        self.slept: list[float] = []
        self.told: list[tuple[str, Outlook]] = []
        self._lives_s: Iterator[float] = iter(lives_s)
        self.keeper = Keeper(
            "engine",
            spawn=lambda: self,  # pyright: ignore[reportArgumentType]
            serve=self._live,
            outside=Outside(self.clock, self._sleep, lambda line: None),
        )
        self.conn: Any = None

    def end(self, patience_s: float) -> int | None:
        return -9

    def kill(self) -> None:
        pass

    def work(self) -> int | None:
        return None

    def run(self) -> Exception | None:
        return asyncio.run(self.keeper.run())

    async def _live(self, conn: Connection) -> Ended:
        """Two seconds to start, then up for so long; a negative life never comes up."""
        up_s = next(self._lives_s, None)
        if up_s is None:
            self.keeper.rests = True
            return Ended(None, was_ready=False)
        self.clock.advance(2.0)
        if up_s < 0:
            return Ended(None, was_ready=False)
        self.keeper.came_up()
        self.clock.advance(up_s)
        self.told.append(("cut off", self.keeper.outlook()))
        return Ended(None, was_ready=True)

    async def _sleep(self, delay_s: float) -> None:
        self.told.append(("down", self.keeper.outlook()))
        self.slept.append(round(delay_s, 6))
        self.clock.advance(delay_s)


def test_backoff_doubles_to_its_limit_and_forgets_after_a_stable_life():
    """Broken: a crash loop eats the machine, or one late crash waits half a minute."""
    delays = [0.0]
    for _ in range(12):
        delays.append(restart_delay_s(delays[-1], 1.0))
    assert delays[1:4] == [0.1, 0.2, 0.4]
    assert delays[-1] == MAX_DELAY_S
    assert restart_delay_s(MAX_DELAY_S, STABLE_S) == 0.1


def test_a_crash_loop_waits_longer_each_time_until_a_life_was_stable():
    """Broken: the record of deaths is lost, or held against a child that has recovered."""
    lives = Lives([1.0, 1.0, -1.0, 1.0, STABLE_S, 1.0])
    assert lives.run() is None
    assert lives.slept == [0.1, 0.2, 0.4, 0.8, 0.1, 0.2]


def test_the_time_told_is_the_time_it_takes():
    """Broken: clients cut off by the fourth death in a row are told to come back at once."""
    lives = Lives([1.0, 1.0, 1.0, 1.0])
    lives.run()
    for _, outlook in lives.told:
        assert outlook.retry_after_s >= 2.0
    at_death = [outlook.retry_after_s for when, outlook in lives.told if when == "cut off"]
    while_down = [outlook.retry_after_s for when, outlook in lives.told if when == "down"]
    assert at_death == pytest.approx([2.1, 2.2, 2.4, 2.8])
    assert while_down == pytest.approx(at_death)
    assert {outlook.reason for when, outlook in lives.told if when == "down"} == {"exit code -9"}


@pytest.mark.parametrize("num_ups", [0, 1])
def test_only_a_child_that_was_never_up_is_given_up(num_ups: int):
    """Broken: one bad hour ends a server for good, or a hopeless start is tried for ever."""
    lives = Lives([1.0] * num_ups + [-1.0] * (MAX_FAILED_STARTS + 2))
    hopeless = lives.run()
    if num_ups:
        assert hopeless is None
        assert len(lives.slept) == 1 + MAX_FAILED_STARTS + 2
    else:
        assert isinstance(hopeless, InternalError)
        assert len(lives.slept) == MAX_FAILED_STARTS - 1
