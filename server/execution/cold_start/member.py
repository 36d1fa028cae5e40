"""One helper as the thread that launches steps sees it: posting, and waiting within a bound.

Owns a mailbox's books on this side: how many entries were posted and answered, which bytes of the
data errands have, and those of errands that were given up, which nobody gets before the helper has
passed them. Knows no rows and no slots' layouts. Made by the crew, once for each life of a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ...clock import Clock
from .mailbox import NUM_ENTRIES, Entry, Mailbox
from .room import Room, Stretch
from .shared import Bell, Watch


class Process(Protocol):
    """As multiprocessing's."""

    @property
    def pid(self) -> int | None: ...
    @property
    def sentinel(self) -> int: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    """The wires to one process."""

    process: Process
    bell: Bell  # rung for it
    answer_bell: Bell  # rung by it


class Member:
    """`seat`: which of the crew's places it has; another process of that place is another one."""

    def __init__(self, seat: int, mailbox: Mailbox, line: Line, clock: Clock) -> None:
        self.seat, self.mailbox, self.line = seat, mailbox, line
        self.room = Room(mailbox.data_bytes)
        self.is_up = False  # it has said hello
        self.hello_epoch = 0  # of its first entry
        self.is_over = False  # it has ended, or was killed
        self.openings: dict[int, int] = {}  # slot -> opening that it was told of
        self._clock = clock
        self._watch = Watch(line.answer_bell, line.process.sentinel)
        self._num_posted = self._num_answered = 0
        self._given_up: list[tuple[int, Stretch]] = []  # (entry, its bytes)

    @property
    def is_late(self) -> bool:
        """Something that was given up is still before it."""
        return bool(self._given_up)

    @property
    def can_post(self) -> bool:
        return not self.is_over and self._num_posted - self._num_answered < NUM_ENTRIES

    def post(self, entry: Entry) -> int:
        """Its number. Only while `can_post`."""
        assert self.can_post, "the ring is full, or nobody reads it"
        number = self._num_posted
        self.mailbox.write(number, entry)
        self._num_posted += 1
        self.line.bell.ring()
        return number

    def look(self, timeout_s: float = 0.0) -> None:
        """Take note of answers, and of its end."""
        ended = self._watch.look(timeout_s)
        # After the look: what it answered before it ended counts.
        self._num_answered += self.line.answer_bell.taken()
        self.is_over = self.is_over or ended
        passed = [held for held in self._given_up if held[0] < self._num_answered]
        for held in passed:
            self._given_up.remove(held)
            self.room.give(held[1])

    def has_answered(self, number: int, epoch: int) -> bool:
        """In full, and for this very epoch."""
        return number < self._num_answered and self.mailbox.done(number) == epoch

    def await_answer(self, number: int, epoch: int, timeout_s: float) -> bool:
        """False: not within the bound, never, or the helper could not."""
        end_s = self._clock.now_s() + timeout_s
        while number >= self._num_answered and not self.is_over:
            left_s = end_s - self._clock.now_s()
            self.look(max(0.0, left_s))
            if left_s <= 0:
                break
        return self.has_answered(number, epoch)

    def settle(self, number: int, stretch: Stretch) -> None:
        """Nobody reads an errand's answer any more; its bytes are free once the helper is past."""
        if number < self._num_answered:
            self.room.give(stretch)
        else:
            self._given_up.append((number, stretch))

    def kill(self) -> None:
        self.is_over = True
        self.line.process.kill()

    def close(self) -> None:
        """After its end."""
        self.line.bell.close()
        self.line.answer_bell.close()
