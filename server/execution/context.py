"""What the model's modules see of the step that is running.

One `StepContext` per loaded model, attached to its attention modules and linears when they
are prepared; the paged model fills it before a forward and clears it after. Does not know
requests. It takes the place of a module global, so that two models may live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.attention import AttentionOptions
from ...kernels.lora import LoraBackend, LoraWork, add_lora


class Attend(Protocol):
    """Attention of one layer over the step's rows; returns [T, H, K]."""

    def __call__(
        self,
        layer: int,
        query_THK: Tensor,
        key_TGK: Tensor,
        value_TGK: Tensor,
        options: AttentionOptions,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LoraStep:
    """The adapters' part of one step."""

    work: LoraWork
    pool_PE: Tensor
    num_rows: int  # that every site is given
    backend: LoraBackend

    def add(self, site: int, hidden_TI: Tensor, out_TO: Tensor) -> None:
        """Add every adapter's product at `site` to its rows of `out_TO`."""
        add_lora(
            hidden_TI,
            self.pool_PE,
            self.work,
            sites=(site,),
            outs_TO=(out_TO,),
            backend=self.backend,
        )


class StepContext:
    """Set before a forward, empty between two."""

    __slots__ = ("attend", "head", "lora")

    def __init__(self) -> None:
        self.attend: Attend | None = None
        self.lora: LoraStep | None = None  # None: no row of this step has an adapter
        # The same for the head, which sees sampled rows only. None: none of them has an adapter.
        self.head: LoraStep | None = None

    def clear(self) -> None:
        self.attend = None
        self.lora = None
        self.head = None
