"""Freed host memory stays with the process.

Owns the one setting of glibc's allocator that steps on a CPU need. Left to itself, it may give
large blocks back at once and ask for them again in the next layer, and the kernel clears every
page of them: by the luck of what was freed before, a prefill spends from nothing to a fifth of
its time there (bench/LOG.md, 2026-11-21). Does nothing with another C library. Called once per
process, before a model is loaded.
"""

from __future__ import annotations

import ctypes
import sys

# From malloc.h. Both stop glibc from moving these limits by itself.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
TRIM_BYTES = 1 << 30  # free at the top of the heap before any goes back
MMAP_BYTES = 32 << 20  # the largest that glibc takes; weights and the pool are larger


def keep_freed_memory() -> bool:
    """Whether the allocator took the setting."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both are made, whatever the first says.
    answers = [mallopt(M_MMAP_THRESHOLD, MMAP_BYTES), mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)]
    return answers == [1, 1]
