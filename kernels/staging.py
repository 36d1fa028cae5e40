"""Staging: the host's small numbers go to preallocated device memory in one copy.

Owns pinned buffers, so that numbers of the next step can be written while those of the last are
on their way. Does not know what the numbers mean. A backend holds one for each
buffer that it fills; the copy runs on the current stream, as the kernels do that read it.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BUFFERS = 3  # of the steps in flight and of the one that is prepared


class Staging:
    """int32 numbers, at most `max_len` at a time."""

    def __init__(self, max_len: int, device: torch.device) -> None:
        self.max_len = max_len
        self._is_cuda = device.type == "cuda"
        count = NUM_BUFFERS if self._is_cuda else 0
        self._buffers = [
            torch.empty(max_len, dtype=torch.int32, pin_memory=True) for _ in range(count)
        ]
        self._copied = [torch.cuda.Event() for _ in range(count)]
        self._next = 0

    def send(self, numbers: NDArray[Any] | Tensor, target: Tensor) -> None:
        """Copy `numbers` (integers that int32 holds) to `target`, as long, on the device.

        They are written where they are sent from. Waits only for a copy that is three sends old.
        """
        if not self._is_cuda:
            target.numpy()[:] = numbers
            return
        for start in range(0, len(numbers), self.max_len):
            part = numbers[start : start + self.max_len]
            event, buffer = self._copied[self._next], self._buffers[self._next][: len(part)]
            event.synchronize()
            buffer.numpy()[:] = part
            target[start : start + len(part)].copy_(buffer, non_blocking=True)
            event.record()
            self._next = (self._next + 1) % NUM_BUFFERS
