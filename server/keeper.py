"""One child process over all its lives: started, ended, started again.

Owns the backoff between two lives, the rule by which a child that never comes up is given up, and
what clients are told meanwhile. Knows neither messages nor what the child is for. Made and run by
the supervisor, once for the engine and once for the store worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from .children import Child
from .clock import Clock
from .errors import InternalError, LorryError
from .rpc.link import Ended, Outlook

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
STABLE_S = 60.0  # a child that lived this long starts again without a record
MAX_FAILED_STARTS = 3  # in a row, of a child that was never up: it will not come up

CHILD_PATIENCE_S = 10.0  # for a child to end by itself
SOON_S = 0.5  # a start that takes longer than the last one: told to those who ask


def restart_delay_s(previous_s: float, lived_s: float) -> float:
    """Semantics: 0.1 s, doubled at each death up to 30 s; from the start after a stable life."""
    if previous_s == 0 or lived_s >= STABLE_S:
        return FIRST_DELAY_S
    return min(2 * previous_s, MAX_DELAY_S)


@dataclass(frozen=True, slots=True)
class Outside:
    """What a keeper touches of the world."""

    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    say: Callable[[str], None]  # one line for the operator


class Keeper:
    """`serve` holds a conversation over a child's pipe and returns when the child is gone."""

    def __init__(
        self,
        name: str,
        spawn: Callable[[], Child],
        serve: Callable[[Connection], Awaitable[Ended]],
        outside: Outside,
        *,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.child: Child | None = None  # None: not yet, or between two lives
        self.rests = False  # set by the supervisor: a child that ends stays down
        self._spawn = spawn
        self._serve = serve
        self._outside = outside
        self._on_restart = on_restart
        self._is_up = False
        self._ever_up = False
        self._num_failed_starts = 0
        self._started_s = 0.0  # of this life
        self._again_s = 0.0  # when the next life begins
        self._start_s = 1.0  # how long the last start took; a guess before the first
        self._delay_s = 0.0
        self._reason = ""  # of the last death

    async def run(self) -> LorryError | None:
        """Until it rests; or why another start is not worth while."""
        while not self.rests:
            ended, reason = await self._live()
            if self.rests:
                return None
            if (hopeless := self._hopeless(ended, reason)) is not None:
                return hopeless
            lived_s = self._now_s() - self._started_s if ended.was_ready else 0.0
            self._delay_s = restart_delay_s(self._delay_s, lived_s)
            self._again_s = self._now_s() + self._delay_s
            self._on_restart()
            self._outside.say(
                f"the {self.name} ended ({reason}); it is started again in {self._delay_s:g} s"
            )
            await self._outside.sleep(self._delay_s)
        return None

    def came_up(self) -> None:
        """Its first message is here. Harmless when called again."""
        if not self._is_up:
            self._is_up = self._ever_up = True
            self._start_s = self._now_s() - self._started_s

    def outlook(self) -> Outlook:
        """About when it is back: asked while it is down, and at the moment of its death."""
        now_s = self._now_s()
        if self._is_up:
            wait_s = restart_delay_s(self._delay_s, now_s - self._started_s) + self._start_s
        elif self.child is None:
            wait_s = max(0.0, self._again_s - now_s) + self._start_s
        else:
            wait_s = max(SOON_S, self._start_s - (now_s - self._started_s))
        return Outlook(wait_s, self._reason, self.rests)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()

    async def _live(self) -> tuple[Ended, str]:
        """One life, and what ended it."""
        self._started_s = self._now_s()
        try:
            self.child = self._spawn()
        except OSError as error:  # no memory or no descriptor now: as good as a death at the start
            self._reason = f"it could not be started: {error.strerror}"
            return Ended(None, was_ready=False), self._reason
        ended = await self._serve(self.child.conn)
        self._is_up = False
        exit_code = await asyncio.to_thread(self.child.end, CHILD_PATIENCE_S)
        self.child = None
        self._reason = str(ended.error or f"exit code {exit_code}")
        return ended, self._reason

    def _hopeless(self, ended: Ended, reason: str) -> LorryError | None:
        """A child that was never up and says why, or has died at its start several times."""
        self._ever_up |= ended.was_ready
        if self._ever_up:
            return None
        if ended.error is not None:
            return ended.error
        self._num_failed_starts += 1
        if self._num_failed_starts < MAX_FAILED_STARTS:
            return None
        return InternalError(
            f"the {self.name} died {self._num_failed_starts} times before it was up, at last "
            f"with {reason}; its own messages are above"
        )

    def _now_s(self) -> float:
        return self._outside.clock.now_s()
