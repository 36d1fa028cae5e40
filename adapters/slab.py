"""Host memory in cells of a page's size.

Owns one stretch of memory and which of its cells are free. Taken from the system whole, so that it
can be pinned once; where it is not, a cell costs memory from its first use on, and the lowest
numbers are given first, so that an empty tier costs nothing and images lie in long stretches.
Shared, other processes can map it (a cold start's helpers read images where they lie). Knows no
adapters. Not for two threads at once: the host tier has the lock.
"""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


class Slab:
    """Raises MemoryError: the system has not as much.

    `cells` is [num_cells, page_elements]; pinned: a GPU copies from it beside the host. `shared`:
    whoever is given `fd` can map the same cells, from its first byte on; `fd` is None where the
    system has no such memory, and what is shared is then an ordinary slab. It is closed with the
    slab: who maps it keeps what is mapped.
    """

    def __init__(
        self,
        capacity_bytes: int,
        page_elements: int,
        dtype: torch.dtype,
        *,
        pinned: bool = False,
        shared: bool = False,
    ) -> None:
        self.cell_bytes = page_elements * dtype.itemsize
        num_cells = capacity_bytes // self.cell_bytes
        num_bytes = num_cells * self.cell_bytes
        self.fd: int | None = None
        if shared:
            memory, self.fd = _shared_memory(num_bytes)
        else:
            memory = _memory(num_bytes)
        self.cells = memory.view(dtype).view(num_cells, page_elements)
        if self.fd is not None:
            weakref.finalize(self, os.close, self.fd)
        self._free = list(range(num_cells))  # a heap: small numbers first
        if pinned and num_cells:
            _pin(self.cells)

    @property
    def num_cells(self) -> int:
        return self.cells.shape[0]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """`count` of the free ones, ascending."""
        return tuple(heappop(self._free) for _ in range(count))

    def give(self, cells: Sequence[int]) -> None:
        for cell in cells:
            heappush(self._free, cell)


def runs_of(cells: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each stretch of neighbours, in their order."""
    start = 0
    for idx in range(1, len(cells) + 1):
        if idx == len(cells) or cells[idx] != cells[idx - 1] + 1:
            yield cells[start], idx - start
            start = idx


def _memory(num_bytes: int) -> Tensor:
    if not num_bytes:
        return torch.empty(0, dtype=torch.uint8)
    # Not torch's own: that has pinned memory in powers of two, and would hold up to twice as much.
    try:
        fresh = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no {num_bytes} bytes of host memory: {error}") from error
    return torch.frombuffer(fresh, dtype=torch.uint8)


def _shared_memory(num_bytes: int) -> tuple[Tensor, int | None]:
    # The system promises shared memory without asking whether there is as much; this one is asked.
    private = _memory(num_bytes)
    if not num_bytes:
        return private, None
    try:
        fd = os.memfd_create("lorry-images")
    except (AttributeError, OSError) as error:
        _log.warning("host memory cannot be shared with helpers: %s", error)
        return private, None
    try:
        os.ftruncate(fd, num_bytes)
        return torch.frombuffer(mmap.mmap(fd, num_bytes), dtype=torch.uint8), fd
    except OSError as error:
        os.close(fd)
        _log.warning("%d bytes of host memory cannot be shared with helpers: %s", num_bytes, error)
        return private, None


def _pin(cells: Tensor) -> None:
    """For the life of the process. Without it copies are as right, and hold up who makes them."""
    num_bytes = cells.numel() * cells.element_size()
    runtime: Any = torch.cuda.cudart()
    try:
        torch.cuda.check_error(runtime.cudaHostRegister(cells.data_ptr(), num_bytes, 0))
    except RuntimeError as error:
        _log.warning("%d bytes of host memory could not be pinned: %s", num_bytes, error)
        _forget_cuda_error()


def _forget_cuda_error() -> None:
    """CUDA keeps it for whoever looks next, and that would be the first step's first kernel."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
