"""How many pages the pool gets, found once at start.

Owns the rule for each device: the flag, else a quarter of a CPU's free memory (at most 1 GiB), or
what a GPU has left beside a whole server with a small pool, less a margin: for lists that grow with
the pool, and for memory that falls into pieces. Does not know what pages are for.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..config import GIB
from ..errors import ConfigError

CPU_SHARE = 0.25
CPU_LIMIT_BYTES = 1 * GIB
GPU_MARGIN_BYTES = 2 * GIB  # not measured yet
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def choose_num_pages(pool_bytes: int, page_bytes: int) -> int:
    """Pages of a pool that has so many bytes for them.

    Raises:
        ConfigError: not even one page fits.
    """
    if pool_bytes < page_bytes:
        raise ConfigError(
            f"--pool-bytes is {pool_bytes}, less than one page ({page_bytes})", field="--pool-bytes"
        )
    return pool_bytes // page_bytes


def default_pool_bytes() -> int:
    """A CPU's own rule, where no flag names the bytes."""
    return min(int(CPU_SHARE * free_host_bytes()), CPU_LIMIT_BYTES)


def free_device_bytes(device: torch.device) -> int:
    """What nobody has taken of a GPU; what torch keeps for later is taken."""
    torch.cuda.synchronize(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes


def free_host_bytes() -> int:
    """What this process may still take: the machine's figure or its container's, if smaller."""
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free_bytes = int(line.split()[1]) * 1024
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists():
        limit_text = limit.read_text().strip()
        if limit_text != "max":
            free_bytes = min(free_bytes, int(limit_text) - int(used.read_text()))
    return max(free_bytes, 0)
