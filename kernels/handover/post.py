"""What the device's side of a hand-over has for itself, taken once.

Owns the record. Made by the server's device_handover.py, which registers the slips' memory with
CUDA; read by `launch.py`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from .slips import SLIP_LEN


@dataclass(frozen=True, slots=True, eq=False)
class Post:
    """One per device and stream: launches that share it run one after the other."""

    slips: Tensor  # int64 [any, SLIP_LEN], host memory that the device sees
    counter: Tensor  # int32 [1], on the device: 0 between two launches
    verdict: Tensor  # int64 [1], on the device: of the newest errand that was awaited

    @property
    def on_gpu(self) -> bool:
        """Or compiled for one; the interpreter has tensors on the CPU."""
        return self.counter.device.type != "cpu"


def host_memory(num_bytes: int) -> Tensor:
    """Zeros, in pages that hold nothing else: CUDA maps whole ones, and none of them twice."""
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def make_post(num_slips: int, device: torch.device) -> Post:
    """The slips are plain memory of the host; for a GPU the caller maps it."""
    return Post(
        host_memory(num_slips * SLIP_LEN * 8).view(torch.int64).view(num_slips, SLIP_LEN),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
