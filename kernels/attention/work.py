"""What one step's attention has to touch: whose rows, which pages, which cells.

Owns the per-step record that every backend reads, and the options an attention layer may
set. Does not know requests, owners of pages or why a chunk has its length.
Built once per step by the runner.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What one layer asks for beside causal attention."""

    scaling: float
    sliding_window: int | None = None  # tokens a query sees, itself included
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    sinks_H: Tensor | None = None  # one logit per head that takes part in the softmax only


@dataclass(frozen=True, eq=False)
class AttentionWork:
    """One step. Host lists say how much; tensors on the device say where."""

    query_lens: tuple[int, ...]  # tokens of each request in this step, at least 1
    context_lens: tuple[int, ...]  # tokens of each request, this step's included
    block_table_BM: Tensor  # int64; entries past a request's pages repeat its last page
    page_T: Tensor  # int64, page of each token of this step
    offset_T: Tensor  # int64, cell of each token within its page
    position_T: Tensor  # int64
    fresh_pages: Tensor  # int64 [any], pages that receive their first token in this step

    @property
    def num_tokens(self) -> int:
        return self.page_T.shape[0]
