"""Notices a child that does nothing: stopped, swapped out, or waiting for what never comes.

A child that is up is asked for a sign of life every few seconds. A step answers nobody until it
ends, and a long prompt of a large model on a CPU may take minutes: silence alone makes health say
so, and only a child that does no work either, or is silent for half an hour, is given up. A child
that starts hears nothing yet, and reading a large model takes as long as it takes: the work its
process has done is its sign. Patience is counted in looks, not in seconds, so that a
front end which was itself stopped does not blame its children. Run by the supervisor, which ends a
child on its word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .children import Child

ASK_EVERY_S = 5.0
MAX_QUIET = 12  # looks without a sign until health says NOT_SERVING: a minute
MAX_LOST = 24  # without work either, until the child is given up: two minutes
MAX_BUSY = 360  # without a message while it works: a step of half an hour, or a loop for ever


@dataclass(frozen=True, slots=True)
class Watched:
    """One child as the watchdog sees it."""

    child: Callable[[], Child | None]  # None: between two lives
    is_up: Callable[[], bool]
    num_heard: Callable[[], int]  # messages of it so far
    ask: Callable[[], None]  # for any message
    set_quiet: Callable[[bool], None]
    give_up: Callable[[float], None]  # told for how many seconds it has been quiet


class Watch:
    """Of one child: how many looks in a row have seen no message, and how many no sign at all."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._num_unheard = 0
        self._num_idle = 0
        self._last_heard: object = None
        self._last_work: object = None

    def look(self) -> None:
        child, is_up = self._watched.child(), self._watched.is_up()
        heard = None if child is None else (id(child), is_up, self._watched.num_heard())
        work = None if child is None else child.work()
        # One that starts has nothing to say: its work alone is its sign.
        was_heard = heard is None or heard != self._last_heard or not is_up
        # Work that cannot be told keeps nobody alive who is up, and blames nobody who starts.
        has_worked = work != self._last_work or (work is None and not is_up)
        self._last_heard, self._last_work = heard, work
        self._num_unheard = 0 if was_heard else self._num_unheard + 1
        self._num_idle = 0 if has_worked or (is_up and was_heard) else self._num_idle + 1
        self._watched.set_quiet(is_up and self._num_unheard >= MAX_QUIET)
        if self._num_idle >= MAX_LOST or self._num_unheard >= MAX_BUSY:
            self._watched.give_up(max(self._num_idle, self._num_unheard) * ASK_EVERY_S)
            self._num_idle = self._num_unheard = 0
        if is_up:
            self._watched.ask()


async def watch(all_watched: Sequence[Watched], sleep: Callable[[float], Awaitable[None]]) -> None:
    """For ever."""
    watches = [Watch(watched) for watched in all_watched]
    while True:
        await sleep(ASK_EVERY_S)
        for one in watches:
            one.look()
