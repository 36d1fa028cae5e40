"""The floor of a decode step: the bytes that must move, at the speed memory was seen to copy.

Pure. Weights are read once for all rows, each request reads the keys and values of its whole
context, and adapters cost what their true ranks are. Activations, page tables and what is written
are left out: they are a percent or less, and a floor may be low, not high.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import ELEMENT_BYTES, StepShape


@dataclass(frozen=True, slots=True)
class StepLoad:
    """One decode step: everyone has one token to compute."""

    batch: int  # requests
    context: int  # tokens of each, the new one included
    dtype: str
    ranks: tuple[int, ...] = ()  # of the distinct adapters in the step, each on all linears


@dataclass(frozen=True, slots=True)
class Floor:
    weight_bytes: int
    kv_bytes: int
    lora_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.lora_bytes

    def ms(self, bytes_per_s: float) -> float:
        return 1e3 * self.total_bytes / bytes_per_s


def floor_of(shape: StepShape, load: StepLoad) -> Floor:
    element_bytes = ELEMENT_BYTES[load.dtype]
    return Floor(
        weight_bytes=shape.num_read_weights * element_bytes,
        kv_bytes=load.batch * load.context * shape.kv_elements_per_token * element_bytes,
        lora_bytes=sum(shape.lora_elements(rank) for rank in load.ranks) * element_bytes,
    )
