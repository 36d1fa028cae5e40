"""What the model's modules see of the step that is running.

One `StepContext` per loaded model, attached to its attention modules and linears when they
are prepared; the paged model fills it before a forward and clears it after. Does not know
requests. It takes the place of a module global, so that two models may live in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.attention import AttentionOptions
from ...kernels.lora import LoraBackend, LoraWork, add_lora
from ..errors import ModelRefused


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


class ColdRows(Protocol):
    """Rows of adapters whose pages are on their way; cold_start/step.py's."""

    def begin(self, sites: Sequence[int], hidden_TI: Tensor) -> None:
        """Before the base's product."""
        ...

    def add(self, sites: Sequence[int], hidden_TI: Tensor, outs_TO: Sequence[Tensor]) -> None:
        """After it."""
        ...


@dataclass(frozen=True, slots=True)
class LoraStep:
    """The adapters' part of one step."""

    work: LoraWork | None  # of adapters in the pool; None: there are none
    pool_PE: Tensor
    num_rows: int  # that every site is given
    backend: LoraBackend
    cold: ColdRows | None = None  # None: every adapter of the step is in the pool

    def begin(self, sites: Sequence[int], input: Tensor) -> None:  # noqa: A002
        """The base's product with `input` is made next.

        Raises:
            ModelRefused: as below.
        """
        if self.cold is not None:
            self.cold.begin(sites, self._rows(sites, input))

    def add(self, sites: Sequence[int], input: Tensor, outs_TO: Sequence[Tensor]) -> None:  # noqa: A002
        """Add every adapter's product with `input` at each of the sites to its rows of their outs.

        Raises:
            ModelRefused: what the sites are given is not the step's rows.
        """
        hidden_TI = self._rows(sites, input)
        if self.work is not None:
            add_lora(
                hidden_TI,
                self.pool_PE,
                self.work,
                sites=sites,
                outs_TO=outs_TO,
                backend=self.backend,
            )
        if self.cold is not None:
            self.cold.add(sites, hidden_TI, outs_TO)

    def _rows(self, sites: Sequence[int], input: Tensor) -> Tensor:  # noqa: A002
        hidden_TI = input.reshape(-1, input.shape[-1]).contiguous()
        if hidden_TI.shape[0] != self.num_rows:
            raise ModelRefused(
                f"site {sites[0]} sees {hidden_TI.shape[0]} rows in a step of "
                f"{self.num_rows}: its rows are not the step's tokens in order",
                field="--model",
            )
        return hidden_TI


class StepContext:
    """Set before a forward, empty between two."""

    __slots__ = ("attend", "head", "lora", "turn")

    def __init__(self) -> None:
        self.attend: Attend | None = None
        self.lora: LoraStep | None = None  # None: no row of this step has an adapter
        # The same for the head, which sees sampled rows only. None: none of them has an adapter.
        self.head: LoraStep | None = None
        self.turn = 0  # of the forward: what was computed in another is void

    def clear(self) -> None:
        self.turn += 1
        self.attend = None
        self.lora = None
        self.head = None
