"""Memory and bells that two processes have in common, without a name in any file system.

Owns how they are made, how they get to a child (by descriptor, when it is spawned) and how they are
mapped there. Knows nothing of what is in them. Used by crew.py and helper.py; torch is imported
when memory is mapped, so that a helper is on its core before that.
"""

from __future__ import annotations

import mmap
import os
import select
import warnings
from collections.abc import Callable
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class SharedFd:
    """A descriptor that is inherited by the process that it is sent to at its start."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[[Any], SharedFd], tuple[Any]]:
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> SharedFd:
    return SharedFd(duplicate.detach())


def make_memory(name: str, num_bytes: int) -> SharedFd:
    """Zeros; a page of it costs memory from its first use on.

    Raises:
        OSError: the system has no such memory, or not as much.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, num_bytes)
    except OSError:
        os.close(fd)
        raise
    return SharedFd(fd)


def map_memory(shared: SharedFd, *, writable: bool = True) -> Tensor:
    """All of it, as bytes, for as long as the tensor or a view of it lives.

    Raises:
        OSError: it cannot be mapped.
    """
    import torch

    num_bytes = os.fstat(shared.fd).st_size
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    mapped = mmap.mmap(shared.fd, num_bytes, flags=mmap.MAP_SHARED, prot=protection)
    with warnings.catch_warnings():
        # Torch has no tensors that may only be read; a write to this one would end the process.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


class Bell:
    """Counts how often it was rung; who waits for it blocks, and burns no processor."""

    def __init__(self, shared: SharedFd | None = None) -> None:
        self.shared = shared or SharedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @property
    def fd(self) -> int:
        return self.shared.fd

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def taken(self) -> int:
        """How often it was rung since the last call; never blocks."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


class Watch:
    """Waits for a bell, or for the end of the process behind `end_fd`."""

    def __init__(self, bell: Bell, end_fd: int | None) -> None:
        self._end_fd = end_fd
        self._poll = select.poll()
        self._poll.register(bell.fd, select.POLLIN)
        if end_fd is not None:
            self._poll.register(end_fd, select.POLLIN)

    def look(self, timeout_s: float | None = 0.0) -> bool:
        """Whether the process has ended. Returns at the first ring or end; None: whenever."""
        timeout_ms = None if timeout_s is None else max(0.0, timeout_s * 1e3)
        return any(fd == self._end_fd for fd, _ in self._poll.poll(timeout_ms))
