"""Which cores the helpers have to themselves, and which are left to the device.

Pure. Helpers are pinned to the last cores of those that the process may use; who computes beside
them keeps to the others, so that no two of Lorry's threads fight for one. Called at start.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...errors import ConfigError

AUTO = -1  # of --helpers
SPARE_CORES = 2  # beside a GPU: for the engine's thread and the front end
# Each helper is a process with torch in it, some 200 MB; more of them share memory's bandwidth.
MAX_AUTO = 8


@dataclass(frozen=True, slots=True)
class Cores:
    helpers: tuple[int, ...]  # one each
    others: tuple[int, ...]  # of the process's, for everybody else


def choose_cores(
    available: Collection[int], *, asked: int, num_device_threads: int | None
) -> Cores:
    """`available`: os.sched_getaffinity(0). None threads: the device is a GPU.

    Raises:
        ConfigError: more helpers than cores that nothing is computed on.
    """
    cores = sorted(available)
    busy = SPARE_CORES if num_device_threads is None else num_device_threads
    num_free = max(0, len(cores) - max(1, busy))
    if asked > num_free:
        raise ConfigError(
            f"--helpers is {asked}; it must be at most {num_free}: of {len(cores)} cores "
            f"{min(busy, len(cores))} are the device's",
            field="--helpers",
        )
    count = min(num_free, MAX_AUTO) if asked == AUTO else asked
    split = len(cores) - count
    return Cores(tuple(cores[split:]), tuple(cores[:split]))
