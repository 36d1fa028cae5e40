"""Stop strings, looked for in a text that arrives in pieces.

Semantics: reading character by character, the stop string that is complete first counts; of
several that end at one character, the longest. So the place depends on the text alone, never on
how it was cut into tokens and pieces. The search is one automaton for all stop strings (Aho and
Corasick, "Efficient string matching", CACM 1975): a character is looked at once, and the state
says how much of the text may still be the beginning of a stop string. Knows no tokens and no
requests; used by answer.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton; never changed after this, so that several answers share it.

    `include`: whether the stop string stays in the text.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.include = include
        # By state; 0 is the start. A state is a beginning of some stop string.
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]  # characters of it
        self._ends = [""]  # the longest stop string it ends with
        self._fallback = [0]  # its longest proper suffix that is a state
        for stop in stops:
            self._add(stop)
        self._link()

    def scan(self) -> StopScan:
        return StopScan(self)

    def step(self, state: int, letter: str) -> int:
        while (after := self._next[state].get(letter)) is None:
            if state == 0:
                return 0
            state = self._fallback[state]
        return after

    def ends(self, state: int) -> str:
        """The stop string that is complete in this state; empty: none."""
        return self._ends[state]

    def num_open(self, state: int) -> int:
        """Last characters of the text that may be the beginning of a stop string."""
        return self._depth[state]

    def _add(self, stop: str) -> None:
        state = 0
        for letter in stop:
            if letter not in self._next[state]:
                self._next[state][letter] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._ends.append("")
                self._fallback.append(0)
            state = self._next[state][letter]
        self._ends[state] = stop

    def _link(self) -> None:
        """Shallow states first: a fallback is shallower than its state."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            self._ends[state] = self._ends[state] or self._ends[self._fallback[state]]
            for letter, after in self._next[state].items():
                self._fallback[after] = self.step(self._fallback[state], letter)
                waiting.append(after)


class StopScan:
    """One text on its way: what comes out of `push` and `rest` is the text as far as it counts."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._state = 0
        self._held = ""  # read, and perhaps the beginning of a stop string
        self.found = ""  # the stop string that ended the text; what comes after it is dropped

    def push(self, text: str) -> str:
        """The characters that are certain now; may be empty."""
        if self.found:
            return ""
        known = self._held + text
        for place, letter in enumerate(text, len(self._held) + 1):
            self._state = self._stops.step(self._state, letter)
            if stop := self._stops.ends(self._state):
                self.found, self._held = stop, ""
                return known[:place] if self._stops.include else known[: place - len(stop)]
        num_held = 0 if self._stops.include else self._stops.num_open(self._state)
        certain = len(known) - num_held
        self._held = known[certain:]
        return known[:certain]

    def copy(self) -> StopScan:
        """One that goes on from here by itself."""
        other = StopScan(self._stops)
        other._state, other._held, other.found = self._state, self._held, self.found
        return other

    def rest(self) -> str:
        """The text is over: what was held back is part of it."""
        held, self._held = self._held, ""
        return held
