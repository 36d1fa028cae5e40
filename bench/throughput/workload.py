"""Workload W: one model's shape, its adapters' ranks, and the requests sent at once.

Plain numbers and the prompts drawn from them; the same seed gives the same load everywhere.
Knows no torch and no files (workload_files.py makes those) and nobody who answers. Used by
every part of this bench.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# Ids below are the tokenizer's special ones and are never part of a prompt.
NUM_SPECIAL = 3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE = ""  # the adapter's name of a request to the base


@dataclass(frozen=True, slots=True)
class Place:
    """On what, in what and with how many threads every row computes."""

    device: str = "cpu"
    dtype: str = "bfloat16"
    num_threads: int = 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama with tied embeddings; as it stands 124.6 million parameters."""

    num_layers: int = 30
    hidden_width: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3
    mlp_width: int = 1536
    vocab_size: int = 32_000
    max_len: int = 1024  # tokens of prompt and answer

    @property
    def head_dim(self) -> int:
        return self.hidden_width // self.num_heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear of a layer."""
        kv_width = self.num_kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden_width, self.hidden_width),
            "k_proj": (self.hidden_width, kv_width),
            "v_proj": (self.hidden_width, kv_width),
            "o_proj": (self.hidden_width, self.hidden_width),
            "gate_proj": (self.hidden_width, self.mlp_width),
            "up_proj": (self.hidden_width, self.mlp_width),
            "down_proj": (self.mlp_width, self.hidden_width),
        }


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one length, all at the same instant, greedy, past any end of sequence."""

    shape: ModelShape = field(default_factory=ModelShape)
    ranks: tuple[int, ...] = (8, 16, 32, 64, 8, 16, 32, 64)  # one adapter each, on all linears
    num_requests: int = 32
    num_prompt_tokens: int = 128
    num_new_tokens: int = 64
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """New tokens of all requests together."""
        return self.num_requests * self.num_new_tokens

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(f"w{idx}-r{rank}" for idx, rank in enumerate(self.ranks))

    def names(self, *, mixed: bool) -> tuple[str, ...]:
        """The adapter of each request: all to the base, or the adapters in turn."""
        if not mixed:
            return (BASE,) * self.num_requests
        return tuple(self.adapters[idx % len(self.ranks)] for idx in range(self.num_requests))

    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Token ids; no two prompts begin alike, so no cache of prefixes could help."""
        rng = random.Random(self.seed)
        firsts = rng.sample(range(NUM_SPECIAL, self.shape.vocab_size), self.num_requests)
        return tuple(
            (
                first,
                *(
                    rng.randrange(NUM_SPECIAL, self.shape.vocab_size)
                    for _ in range(self.num_prompt_tokens - 1)
                ),
            )
            for first in firsts
        )
