"""How much of everything: adapters, rounds and requests of a full run and of a quick one.

Plain numbers, and the flags that all servers share. Knows no server. Used by every part of this
bench.
"""

from __future__ import annotations

from dataclasses import dataclass

NUM_HOT = 5  # adapters of the small set
NUM_WARM = 5  # further ones, pinned beside them while loads are judged
RANK = 8  # S-LoRA's, where it kept 0.945 with 2,000 active
POOL_ADAPTERS = 30  # that fit beside the KV of a full batch
MAX_RUNNING = 16
NUM_PROMPT_TOKENS = 64
NUM_NEW_TOKENS = 64
IN_FLIGHT = 2 * MAX_RUNNING  # requests out at any time: a batch, and as many in line
NUM_BYSTANDERS = 8
LINK_S = 0.05  # that the emulated link takes for an adapter: more than a step

SERVER_FLAGS = (
    *("--max-running", str(MAX_RUNNING), "--max-step-tokens", "256"),
    *("--max-model-len", "512"),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    num_registered: int  # adapters of the large store
    num_active: int  # adapters that are asked for, uniformly
    num_rounds: int  # turns of each row that count; one more warms up
    num_starts: int  # of each store
    num_requests: int  # of a turn
    num_bystander_tokens: int  # of each bystander's answer


FULL = Sizes(10_000, 2_000, 5, 5, 160, 384)
QUICK = Sizes(1_000, 200, 1, 2, 3 * IN_FLIGHT, 384)
