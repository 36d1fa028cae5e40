"""What a way of computing LoRA has to offer so that this bench can time it.

A way is built from a case's inputs and adds to `inputs.out`. Building it (copies of the weights
in its own layout, tables of pointers) is not timed; `prepare`, what the host does before every
step, is timed by itself; `add` is the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .inputs import Inputs


class Way(Protocol):
    def prepare(self) -> None:
        """What is done once a step: lists are made from the segments and brought over."""
        ...

    def add(self, layer: int, group: int) -> None:
        """One group of one layer: zeroing and all launches that its result takes."""
        ...


class NotMeasured(Exception):
    """A way cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class NamedWay:
    """A row's name, and how to build what it names."""

    name: str
    note: str  # one line on what it is
    # Raises NotMeasured.
    build: Callable[[Inputs], Way]
    peer: str = ""  # whose kernels, where they are somebody else's (rivals/folder.py)
    is_tuned: bool = False  # a peer, with tables tuned for the case
