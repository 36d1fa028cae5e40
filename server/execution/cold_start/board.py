"""The board: which layers of each load are there, in host memory and in the pool.

Written by the link's threads, read and waited for by the thread that launches steps. A slot's line
begins with its load and ends with it; who waits for one that failed or was given up is told so.
Knows no adapters and no pages. Layers count from 0; a layer is there when all before it are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Line:
    load_id: int
    num_read: int = 0  # layers whose image is in host memory
    num_landed: int = 0  # layers in the pool
    is_void: bool = False  # failed or given up: nothing more will come


class LandedBoard:
    """For any number of threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: dict[int, _Line] = {}  # by slot

    def begin(self, slot: int, load_id: int) -> None:
        """A load was ordered; what the slot's line said before is gone."""
        with self._changed:
            self._lines[slot] = _Line(load_id)

    def read(self, slot: int, load_id: int, num_layers: int) -> None:
        """So many layers are in host memory; of an older load it is ignored."""
        with self._changed:
            line = self._lines.get(slot)
            if line is not None and line.load_id == load_id:
                line.num_read = max(line.num_read, num_layers)
                self._changed.notify_all()

    def land(self, slot: int, load_id: int, num_layers: int) -> None:
        """So many layers are in the pool; of an older load it is ignored."""
        with self._changed:
            line = self._lines.get(slot)
            if line is not None and line.load_id == load_id:
                line.num_landed = max(line.num_landed, num_layers)
                self._changed.notify_all()

    def void(self, slot: int, load_id: int) -> None:
        """Nothing more of this load will come."""
        with self._changed:
            line = self._lines.get(slot)
            if line is not None and line.load_id == load_id:
                line.is_void = True
                self._changed.notify_all()

    def has_landed(self, slot: int, layer: int) -> bool:
        with self._changed:
            line = self._lines.get(slot)
            return line is not None and layer < line.num_landed

    def await_landed(self, slot: int, layer: int, timeout_s: float) -> bool:
        """False: it will not come, or not within the bound."""
        return self._await(slot, timeout_s, lambda line: layer < line.num_landed)

    def await_either(self, slot: int, layer: int, timeout_s: float) -> bool:
        """Until the layer is in host memory or in the pool. False: as above."""
        return self._await(
            slot, timeout_s, lambda line: layer < max(line.num_read, line.num_landed)
        )

    def _await(self, slot: int, timeout_s: float, is_there: Callable[[_Line], bool]) -> bool:
        def is_settled() -> bool:
            line = self._lines.get(slot)
            return line is None or line.is_void or is_there(line)

        with self._changed:
            self._changed.wait_for(is_settled, timeout_s)
            line = self._lines.get(slot)
            return line is not None and is_there(line)
