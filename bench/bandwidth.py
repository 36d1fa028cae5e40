"""The ceiling that kernels and steps are held against: what the device's memory copies by itself.

Owns how it is measured: the fastest of a dozen copies far larger than any cache. The fastest, as
a ceiling that was reached once is no lower the next time. Called by `lorry bench kernels` and
`lorry bench step`, so that both fractions are of the same thing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
NUM_WARM, NUM_COPIES = 2, 12


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes a second, read and written; nothing of the copies' memory is kept."""
    num_bytes = COPY_BYTES[device.type]
    # Noise, not zeros: those are cheaper to move.
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    times_s = (_time_cuda if device.type == "cuda" else _time_cpu)(source)
    del source
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return copied_bytes_per_s(num_bytes, times_s[NUM_WARM:])


def copied_bytes_per_s(num_bytes: int, times_s: Sequence[float]) -> float:
    """Of copies of so many bytes: each is read and written, the fastest counts."""
    return 2 * num_bytes / min(times_s)


def _time_cpu(source: Tensor) -> list[float]:
    target, times_s = torch.empty_like(source), list[float]()
    for _ in range(NUM_WARM + NUM_COPIES):
        start_s = time.perf_counter()
        target.copy_(source)
        times_s.append(time.perf_counter() - start_s)
    return times_s


def _time_cuda(source: Tensor) -> list[float]:
    """All queued at once, an event between two: the device never waits for the host."""
    target = torch.empty_like(source)
    with torch.cuda.device(source.device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(NUM_WARM + NUM_COPIES + 1)]
        marks[0].record()
        for mark in marks[1:]:
            target.copy_(source)
            mark.record()
        marks[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
