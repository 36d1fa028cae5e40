"""The largest step that a backend on a device takes memory for, and the one model it serves.

Owns the record only: whoever builds a runner fills it from the model and its own limits. Every
buffer beside the results is made from it once, so that reserved memory stays flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionRoom:
    """See the module."""

    max_rows: int  # tokens of a step
    max_requests: int  # of a step
    max_pages: int  # of one request: the width of a block table
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tokens_per_page: int
    dtype: torch.dtype  # of queries, keys, values and the pool
    device: torch.device

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_requests", "max_pages", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} KV heads evenly"
            )
        if self.tokens_per_page & (self.tokens_per_page - 1):
            raise ValueError(f"{self.tokens_per_page} tokens a page; it must be a power of two")

    @property
    def fold(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def max_context_tokens(self) -> int:
        return self.max_pages * self.tokens_per_page
