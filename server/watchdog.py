"""Notices an engine that is up and says nothing: stopped, swapped out or in a loop.

Asks it for a sign of life every few seconds. A step answers nobody until it ends, and a long
prompt of a large model on a CPU takes long: so patience is wide, and any message counts.
Patience is counted in questions, not in seconds, so that a front end which was itself stopped
does not blame the engine. Run by the supervisor, which ends the engine on its word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .rpc.front import Front

ASK_EVERY_S = 5.0
MAX_QUIET = 12  # questions without an answer until health says NOT_SERVING: a minute
MAX_LOST = 24  # until the engine is given up: two minutes

Sleep = Callable[[float], Awaitable[None]]


async def watch_engine(front: Front, sleep: Sleep, give_up: Callable[[float], None]) -> None:
    """For ever. `give_up` is told for how many seconds the engine has been quiet."""
    num_missed = 0
    num_heard = front.engine.num_heard
    while True:
        await sleep(ASK_EVERY_S)
        if front.engine.info is None or front.engine.num_heard != num_heard:
            num_missed = 0
        else:
            num_missed += 1
        num_heard = front.engine.num_heard
        front.set_quiet(num_missed >= MAX_QUIET)
        if num_missed >= MAX_LOST:
            give_up(num_missed * ASK_EVERY_S)
            num_missed = 0
        if front.engine.info is not None:
            front.engine.ask_for_life()
