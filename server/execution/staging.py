"""Numbers on their way to the device: written in order, sent off in one copy.

Owns the host's side of a step's small arrays and their places on the device. On a GPU the host
side is pinned memory and exists twice, in turn: a copy of the step before may still be under way
when the next step is written. The device's side exists once: copies and kernels share a stream,
so a step's numbers are overwritten after its last kernel has read them. On a CPU both are one.
Knows no rows. Used by batch.py for the step's tensors and by the sampler for its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64] | NDArray[np.float32] | Sequence[int] | Sequence[float]

MAX_FLIGHTS = 2  # steps launched and not waited for, at most
ALIGN_CELLS = 2  # 16 bytes: where an array begins must not change how kernels read it


def room_cells(num_arrays: int, num_values: int) -> int:
    """Cells that so many arrays of so many values in all take at most."""
    return num_values + num_arrays * ALIGN_CELLS


class Staging:
    """See the module."""

    def __init__(self, num_cells: int, device: torch.device) -> None:
        self._on_host = device.type != "cuda"
        num_sides = 1 if self._on_host else MAX_FLIGHTS
        self._sides = [_Side(num_cells, pinned=not self._on_host) for _ in range(num_sides)]
        self._side = self._sides[0]
        self._turns = 0
        host = self._side.cells
        self._device_cells = host if self._on_host else torch.zeros_like(host, device=device)
        self._device_floats = self._device_cells.view(torch.float32)
        self._used = self._sent = 0  # cells of this step
        self.num_misses = 0  # arrays that did not fit and went another way

    def turn(self) -> None:
        """Begin a step. Its side was sent off `MAX_FLIGHTS` steps ago; what is still being copied
        of it is waited for, which takes no time where flights are waited for in order.
        """
        self._turns += 1
        self._side = self._sides[self._turns % len(self._sides)]
        if self._side.copied is not None:
            self._side.copied.synchronize()
        self._used = self._sent = 0

    def fits(self, num_values: int) -> bool:
        """Whoever is told that there is no room sends the numbers another way, which waits."""
        fits = self._used + num_values <= len(self._side.numpy)
        self.num_misses += not fits
        return fits

    def put(self, values: Numbers, dtype: torch.dtype = torch.int64, *, room: int = 0) -> Tensor:
        """Where `values` will be once sent; `room` values at least, those past the given zero.

        The place depends on what was put since `turn` alone.

        Raises:
            ValueError: it does not fit.
        """
        size = max(len(values), room)
        start = self._used
        if start + size > len(self._side.numpy):
            raise ValueError(f"{start + size} numbers do not fit {len(self._side.numpy)}")
        self._used = start + size + -size % ALIGN_CELLS
        if dtype == torch.int64:
            host, device = self._side.numpy, self._device_cells
        else:
            host, device, start = self._side.floats, self._device_floats, 2 * start
        host[start : start + len(values)] = values
        if size > len(values):
            host[start + len(values) : start + size] = 0
        return device[start : start + size]

    def send(self) -> None:
        """Copy what was put since the last `send`; returns at once."""
        if not self._on_host and self._used > self._sent:
            part = slice(self._sent, self._used)
            self._device_cells[part].copy_(self._side.cells[part], non_blocking=True)
            self._sent = self._used
            self._side.copied = self._side.copied or torch.cuda.Event()
            self._side.copied.record()


class _Side:
    """One step's numbers on the host, seen as 64-bit integers and as floats."""

    def __init__(self, num_cells: int, *, pinned: bool) -> None:
        num_cells += -num_cells % ALIGN_CELLS
        self.cells = torch.zeros(num_cells, dtype=torch.int64, pin_memory=pinned)
        self.numpy: NDArray[np.int64] = self.cells.numpy()
        self.floats: NDArray[np.float32] = self.numpy.view(np.float32)
        self.copied: torch.cuda.Event | None = None  # after its last copy
