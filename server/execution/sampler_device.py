"""What the sampler does differently from device to device: how numbers get there, what may be
looked at on the way.

On a CPU a look at a result costs nothing, so work follows what is found. On a GPU the host must
not wait before the tokens are chosen: numbers go through staged buffers, and what a look would
have spared is computed. Either way gives the same scores. Knows no logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .staging import Numbers, Staging

# Of the logits, worked on at once: bounds temporaries. A CPU's caches hold so much; a GPU wants
# few launches, and gives some 200 MB.
CPU_BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS = 1 << 18, 1 << 22


@dataclass(frozen=True, slots=True)
class SamplerDevice:
    """See the module."""

    device: torch.device
    may_look: bool  # whether the host may read a tensor before the tokens are chosen
    block_elements: int
    staging: Staging | None = None  # None: numbers are on the device when they are made

    def put(self, values: Numbers, dtype: torch.dtype = torch.int64) -> Tensor:
        """A list or an array as a tensor on the device."""
        if self.staging is not None and self.staging.fits(len(values)):
            placed = self.staging.put(values, dtype)
            self.staging.send()
            return placed
        if isinstance(values, np.ndarray):
            return torch.from_numpy(values).to(device=self.device, dtype=dtype)
        return torch.tensor(values, dtype=dtype, device=self.device)

    def column(self, values: Sequence[float]) -> Tensor:
        """[B, 1] in fp32."""
        return self.put(values, torch.float32)[:, None]

    def blocks(self, num_rows: int, vocab: int) -> list[range]:
        """As many rows at a time as temporaries are made for."""
        size = max(1, self.block_elements // vocab)
        return [range(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def sampler_device(
    device: torch.device, staging: Staging | None = None, *, may_look: bool = True
) -> SamplerDevice:
    """`staging` is for those who may not look: it spares waiting."""
    on_gpu = device.type == "cuda"
    size = GPU_BLOCK_ELEMENTS if on_gpu else CPU_BLOCK_ELEMENTS
    return SamplerDevice(device, may_look, size, None if may_look else staging)


ON_CPU = sampler_device(torch.device("cpu"))
