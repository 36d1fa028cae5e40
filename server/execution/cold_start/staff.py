"""The staff: the helpers' processes, each at its seat, and what becomes of those that end.

Owns starting, greeting, killing and starting again: one that has ended is replaced by a thread of
its own, a few times, and no step waits for that. A seat's mailbox outlives who sits there. Knows no
slots (crew.py does, which tells newcomers what is open). For the thread that launches steps.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from queue import Empty, SimpleQueue

from ...clock import Clock
from .helper import Post, helper_main
from .mailbox import Entry, Kind, Mailbox
from .member import Line, Member, Process
from .shared import Bell

MAX_RESTARTS = 3  # of each seat: a helper that keeps ending has a reason
END_PATIENCE_S = 5.0
_log = logging.getLogger(__name__)

Spawn = Callable[[Post], Process]


def spawn_helper(post: Post) -> Process:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=helper_main, args=(post,), name="lorry-helper", daemon=True)
    process.start()
    # Whatever this process ends by: multiprocessing asks its daemons to end, which a helper does
    # not hear, and waits for them. In a child of its own it does so before anything of atexit.
    Finalize(None, process.kill, exitpriority=1)
    return process


class Staff:
    """A helper for each mailbox; `make_post(seat, bell, answer_bell)` says what it is given.

    Raises:
        OSError: the system has no processes for them.
    """

    def __init__(
        self,
        mailboxes: Sequence[Mailbox],
        make_post: Callable[[int, Bell, Bell], Post],
        *,
        next_epoch: Callable[[], int],
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self.num_restarts = 0
        self._mailboxes, self._make_post = mailboxes, make_post
        self._next_epoch, self._clock, self._spawn = next_epoch, clock, spawn
        self._members: list[Member | None] = [None] * len(mailboxes)  # by seat
        self._restarts = [0] * len(mailboxes)
        self._fresh: SimpleQueue[Member | None] = SimpleQueue()  # None: it could not be started
        self._num_expected = 0  # of those to come
        self._threads: list[threading.Thread] = []
        self._is_stopped = False
        try:
            for seat in range(len(mailboxes)):
                self._seat(self._start(seat))
        except BaseException:
            self.stop()
            raise

    @property
    def members(self) -> list[Member]:
        """Those that are up or about to be."""
        return [member for member in self._members if member is not None]

    @property
    def pids(self) -> list[int | None]:
        """By seat; None: nobody sits there now."""
        return [member and member.line.process.pid for member in self._members]

    @property
    def num_up(self) -> int:
        return sum(member.is_up and not member.is_over for member in self.members)

    def tend(self) -> Iterator[Member]:
        """Look at everybody, a system call each and never a wait; yields those that came up."""
        while not self._fresh.empty():
            self._seat(self._fresh.get())
            self._num_expected -= 1
        for member in self.members:
            member.look()
            if member.is_over:
                self._replace(member)
            elif not member.is_up and member.has_answered(0, member.hello_epoch):
                member.is_up = True
                yield member

    def await_change(self, timeout_s: float) -> bool:
        """Until somebody who is about to be up says something; False: everybody is up or gone."""
        waiting = [member for member in self.members if not member.is_up]
        if waiting:
            waiting[0].look(timeout_s)
        elif self._num_expected:
            with suppress(Empty):
                self._seat(self._fresh.get(timeout=timeout_s))
                self._num_expected -= 1
        else:
            return False
        return True

    def put_down(self, member: Member) -> None:
        """Kill it, and see that it has ended: from then on it reads nothing."""
        member.kill()
        member.line.process.join(END_PATIENCE_S)

    def stop(self) -> None:
        """End them all; nothing else may be called afterwards."""
        self._is_stopped = True
        for thread in self._threads:
            thread.join(END_PATIENCE_S)
        members = self.members
        while not self._fresh.empty():
            fresh = self._fresh.get()
            if fresh is not None:
                members.append(fresh)
        for member in members:
            member.kill()
        for member in members:
            member.line.process.join(END_PATIENCE_S)
            member.close()
        self._members = [None] * len(self._members)

    def _start(self, seat: int) -> Member:
        bell, answer_bell = Bell(), Bell()
        try:
            process = self._spawn(self._make_post(seat, bell, answer_bell))
        except BaseException:
            bell.close()
            answer_bell.close()
            raise
        return Member(seat, self._mailboxes[seat], Line(process, bell, answer_bell), self._clock)

    def _seat(self, member: Member | None) -> None:
        """Greet it: its answer says that it is up."""
        if member is None:
            return
        self._members[member.seat] = member
        member.hello_epoch = self._next_epoch()
        member.post(Entry(Kind.HELLO, member.hello_epoch))

    def _replace(self, member: Member) -> None:
        seat = member.seat
        self._members[seat] = None
        again = self._restarts[seat] < MAX_RESTARTS and not self._is_stopped
        _log.warning("helper %d has ended%s", seat, "; starting another" if again else " for good")
        self._restarts[seat] += again
        self.num_restarts += again
        self._num_expected += again
        thread = threading.Thread(
            target=self._revive, args=(member, again), name="lorry-helper-start", daemon=True
        )
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _revive(self, member: Member, again: bool) -> None:
        """On a thread of its own. The mailbox is used again once nobody else can write it."""
        member.kill()
        member.line.process.join()
        member.close()
        if not again:
            return
        fresh = None
        try:
            fresh = None if self._is_stopped else self._start(member.seat)
        except OSError as error:
            _log.warning("helper %d cannot be started again: %s", member.seat, error)
        finally:
            self._fresh.put(fresh)
