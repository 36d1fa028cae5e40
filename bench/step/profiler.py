"""Asks torch's profiler which kernels a step runs; on a CPU there is nothing to ask.

Owns the call and the translation into spans; kernel_times.py makes the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ...server.execution.batch import StepRow
from ...server.execution.runner import Runner
from .kernel_times import KernelSpan, KernelTimes, digest

NUM_STEPS = 5


def profile_steps(runner: Runner, rows: Sequence[StepRow]) -> KernelTimes | None:
    """Means over a few steps, one after the other; None on a CPU."""
    if not runner.pool_PE.is_cuda:
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(NUM_STEPS):
            runner.run(rows)
        torch.cuda.synchronize()
    spans = [
        KernelSpan(event.name, event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type == DeviceType.CUDA and event.time_range.elapsed_us() > 0
    ]
    return digest(spans, NUM_STEPS)
