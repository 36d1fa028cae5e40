"""The clock: milliseconds of a step on a CPU or a GPU, and the size of the device's cache.

On CUDA the whole step is recorded into a graph and replayed, timed by events; what cannot be
recorded runs eagerly and says so. On a CPU the clock on the wall. Medians, after warm-up runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

WARM_UPS = 3
MIN_REPEATS, MAX_REPEATS = 5, 50
# Repeats stop after that long, so that slow ways do not hold up the others.
ENOUGH_S = {"cpu": 1.0, "cuda": 0.25}
# Between two events of a GPU.
STEPS_A_SAMPLE = 5
PREPARE_REPEATS = 10
# For a CPU that does not tell.
DEFAULT_CACHE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Timed:
    ms: float  # median
    repeats: int
    how: str  # graph, eager, or cpu


def cache_bytes(device: torch.device) -> int:
    """The largest cache between the device and its memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes: list[int] = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=DEFAULT_CACHE_BYTES)


@torch.inference_mode()
def time_step(step: Callable[[], object], device: torch.device) -> Timed:
    """`step`, again and again."""
    if device.type == "cpu":
        times = _wall(step, MAX_REPEATS, ENOUGH_S["cpu"])
        return Timed(statistics.median(times), len(times), "cpu")
    replay, how = _record(step)
    times = _events(replay, MAX_REPEATS, ENOUGH_S["cuda"])
    return Timed(statistics.median(times), len(times), how)


@torch.inference_mode()
def time_prepare(prepare: Callable[[], None], device: torch.device) -> float:
    """Milliseconds until `prepare` is back and the device is done with what it sent off."""
    times: list[float] = []
    for _ in range(PREPARE_REPEATS):
        _settle(device)
        start_s = time.perf_counter()
        prepare()
        _settle(device)
        times.append((time.perf_counter() - start_s) * 1e3)
    return statistics.median(times)


def _record(step: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """A graph of the step, or the step itself when it cannot be recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return step, f"eager ({str(error).splitlines()[0][:80]})"
    return graph.replay, "graph"


def _wall(step: Callable[[], object], repeats: int, enough_s: float) -> list[float]:
    step()
    times: list[float] = []
    began_s = time.perf_counter()
    while len(times) < repeats:
        start_s = time.perf_counter()
        step()
        now_s = time.perf_counter()
        times.append((now_s - start_s) * 1e3)
        if _is_enough(len(times), now_s - began_s, enough_s):
            break
    return times


def _events(step: Callable[[], object], repeats: int, enough_s: float) -> list[float]:
    for _ in range(WARM_UPS):
        step()
    torch.cuda.synchronize()
    times: list[float] = []
    began_s = time.perf_counter()
    while len(times) < repeats:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        # The device is busy when the first event is queued: what launching costs the host is
        # hidden, as in a server that is ahead of its device.
        step()
        start.record()
        for _ in range(STEPS_A_SAMPLE):
            step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / STEPS_A_SAMPLE)
        if _is_enough(len(times), time.perf_counter() - began_s, enough_s):
            break
    return times


def _is_enough(num_times: int, waited_s: float, enough_s: float) -> bool:
    """Few repeats do for a way so slow that its spread is nothing beside its distance."""
    return waited_s > enough_s and (num_times >= MIN_REPEATS or waited_s > 5 * enough_s)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
