"""Which ways of starting cold this server has, and who helps: from flags and the machine.

Pure. Refuses what was asked for and cannot be, naming the flags. Does not know what a way costs
(scheduling/cold_start.py chooses by that, request by request). Called once, by engine_process.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from .config import ServerConfig
from .errors import ConfigError
from .execution.cold_start.cores import AUTO, Cores, choose_cores
from .scheduling.starts import Way

# `stream` and `assist` alone are for comparisons: who cannot start so waits all the same.
WAYS = {
    "wait": frozenset({Way.WAIT}),
    "stream": frozenset({Way.STREAM}),
    "assist": frozenset({Way.ASSIST}),
    "auto": frozenset({Way.WAIT, Way.STREAM, Way.ASSIST}),
}


class ColdChoice(NamedTuple):
    ways: frozenset[Way]
    cores: Cores
    why: str  # one line, for people

    @property
    def is_cold(self) -> bool:
        """Whether anybody may start before their adapter is there."""
        return self.ways != WAYS["wait"]

    def without_help(self, why: str) -> ColdChoice:
        """There are no helpers after all."""
        cores = Cores((), tuple(sorted((*self.cores.helpers, *self.cores.others))))
        return ColdChoice(self.ways - {Way.ASSIST}, cores, f"{self.why.partition(':')[0]}: {why}")


def choose_cold(
    config: ServerConfig,
    *,
    device: str,
    available: Collection[int],
    num_threads: int,
    learns: bool = True,
) -> ColdChoice:
    """`available`: cores of this process; `num_threads`: that a CPU device computes with; `learns`:
    step times are learnt, so that something can be foretold.

    Raises:
        ConfigError: more helpers than there are cores for, or assisting with none.
    """
    mode, asked = config.cold.cold_start, config.cold.num_helpers
    nobody = ColdChoice(WAYS[mode], Cores((), tuple(sorted(available))), f"--cold-start {mode}")
    if mode == "auto" and not learns:
        return nobody._replace(ways=WAYS["wait"], why="--cold-start auto: wait, nothing is timed")
    if Way.ASSIST not in nobody.ways:
        return nobody
    threads = None if device.startswith("cuda") else num_threads
    cores = choose_cores(available, asked=asked, num_device_threads=threads)
    if mode == "assist" and not cores.helpers:
        raise ConfigError(
            f"--cold-start is 'assist' and --helpers is {asked}: of {len(available)} cores none is "
            f"left beside the device's; give it fewer with --threads ({num_threads} now), or "
            "another --cold-start",
            field="--cold-start",
        )
    if mode == "auto":
        reason = _why_nobody_helps(config, cores, device)
        if reason:
            return nobody.without_help(reason)
    count = len(cores.helpers)
    helpers = f"{count} helper{'s' if count > 1 else ''} on the last of {len(available)} cores"
    return ColdChoice(nobody.ways, cores, f"--cold-start {mode}: {helpers}")


def _why_nobody_helps(config: ServerConfig, cores: Cores, device: str) -> str:
    """Empty: somebody does."""
    if config.cold.num_helpers == 0:
        return "no helpers, --helpers is 0"
    if not cores.helpers:
        return "no helpers, every core is the device's"
    if not config.memory.host_bytes:
        return "no helpers, --host-bytes is 0 and they compute from host memory"
    if not config.cost.calibrate_s and config.cold.num_helpers == AUTO:
        return "no helpers, --calibrate is 0 and nothing would say when they are worth it"
    on_cuda, is_auto = device.startswith("cuda"), config.cold.num_helpers == AUTO
    if is_auto and not on_cuda and not config.memory.link_bytes_per_s:
        return "no helpers, a load into a pool in host memory is a short copy"
    if is_auto and on_cuda:
        # Its kernels have run in Triton's interpreter alone (2026-11-22), and one that faults takes
        # the device with it.
        return "no helpers, beside a GPU they are unproven; ask for them with --helpers"
    return ""
