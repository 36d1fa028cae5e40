"""A helper: one process, one core, one mailbox.

Owns its start (on its core before torch counts the cores) and its loop: block until the bell
rings, do the entries in their order, lay factors out ahead, block again. It spins only where the
rows are to come from a GPU, which cannot ring, and within a bound. Ends when its parent does.
`helper_main` is imported by name in a fresh interpreter, so nothing heavy is imported up here.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...clock import Clock, MonotonicClock
from .shared import Bell, SharedFd, Watch, map_memory

if TYPE_CHECKING:
    from .desk import Desk
    from .mailbox import Mailbox

NAME = b"lorry-helper"  # at most 15 bytes
PR_SET_NAME = 15  # linux/prctl.h
# Until a GPU's rows come. A whole step is launched ahead of them, so this is longer than one.
GO_PATIENCE_S = 10.0
LOOKS_PER_CHECK = 4096  # at the go word, between two looks at the clock and the parent


@dataclass(frozen=True, slots=True)
class Post:
    """All that a helper is given."""

    core: int
    widths: tuple[tuple[int, int], ...]  # (in, out) of every site of the base
    tile_cols: int
    dtype: str  # float32, bfloat16, float16: the model's
    mailbox: SharedFd
    ledger: SharedFd
    cells: SharedFd  # the slab
    bell: SharedFd  # rung once for each entry
    answer_bell: SharedFd  # and once for each answer


def helper_main(post: Post) -> None:
    """The process's whole life."""
    # A Ctrl-C reaches the whole group; the engine still needs its helpers while it drains.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, NAME, 0, 0, 0)
    with suppress(OSError):  # a container may forbid it: slower, and as right
        os.sched_setaffinity(0, {post.core})
    import torch

    from ..host_memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # factors come and go with their slots
    parent = multiprocessing.parent_process()
    with torch.inference_mode():
        serve(post, None if parent is None else parent.sentinel)


def serve(post: Post, end_fd: int | None) -> None:
    """Until `end_fd` can be read."""
    import torch

    from .desk import Desk, DeskPlan
    from .mailbox import Mailbox

    dtype = {str(kind): kind for kind in (torch.float32, torch.bfloat16, torch.float16)}[
        f"torch.{post.dtype}"
    ]
    mailbox = Mailbox(map_memory(post.mailbox))
    cells = map_memory(post.cells, writable=False)
    desk = Desk(
        DeskPlan(post.widths, post.tile_cols, dtype),
        mailbox,
        map_memory(post.ledger, writable=False),
        cells[: cells.numel() // dtype.itemsize * dtype.itemsize].view(dtype),
    )
    bell = Bell(post.bell)
    _Loop(desk, mailbox, Watch(bell, end_fd), MonotonicClock()).run(bell, Bell(post.answer_bell))


class _Loop:
    def __init__(self, desk: Desk, mailbox: Mailbox, watch: Watch, clock: Clock) -> None:
        self._desk, self._mailbox, self._watch, self._clock = desk, mailbox, watch, clock
        self._is_over = False

    def run(self, bell: Bell, answer_bell: Bell) -> None:
        number = 0
        while not self._is_over:
            for _ in range(bell.taken()):
                self._desk.do(number, self._await_go)
                number += 1
                answer_bell.ring()
            self._is_over = self._watch.look(0.0 if self._desk.prepare() else None)

    def _await_go(self, number: int, epoch: int) -> bool:
        end_s = self._clock.now_s() + GO_PATIENCE_S
        while not self._is_over and self._clock.now_s() < end_s:
            for _ in range(LOOKS_PER_CHECK):
                word = self._mailbox.go(number)
                if abs(word) == epoch:
                    return word == epoch
            self._is_over = self._watch.look()
        return False
