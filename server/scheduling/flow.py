"""How fast the waiting line fills, against how fast it is let in.

Counts requests, never time: it moves when one joins (state.py) and when a plan lets some in
(commit.py), so time alone never changes what it says. Read by policies.
"""

from __future__ import annotations

from dataclasses import dataclass

# S-LoRA's weights, of the newest count against all before.
NEW, OLD = 0.7, 0.3


@dataclass(slots=True)
class LineFlow:
    """Requests per batch let in, smoothed."""

    num_joined: int = 0  # since a plan last let anyone in
    joined: float = 1.0  # between one batch let in and the next
    let_in: float = 1.0  # a batch

    def join(self) -> None:
        self.num_joined += 1

    def let(self, num_requests: int) -> None:
        """One plan's newcomers; those who come back after a preemption are none."""
        self.joined = self.joined_now
        self.let_in = NEW * num_requests + OLD * self.let_in
        self.num_joined = 0

    @property
    def joined_now(self) -> float:
        """As if a batch were let in now."""
        return NEW * self.num_joined + OLD * self.joined

    @property
    def grows(self) -> bool:
        """Whether no fewer come than are let in."""
        return self.joined_now >= self.let_in
