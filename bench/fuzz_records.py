"""An episode of the fuzzer before and after: its circumstances, and the sums of what happened.

Plain data. A setting is drawn from the episode's seed alone, and each of its choices makes
something scarce in some episodes and plentiful in others. Used by fuzz_episode.py and fuzz.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..server.config import MemoryConfig
from .soak_rounds import Sums


@dataclass(slots=True)
class Totals(Sums):
    """What happened; sums over episodes."""

    steps: int = 0
    requests: int = 0
    tokens: int = 0
    sampled_tokens: int = 0  # part of tokens; temperature above 0
    filtered_tokens: int = 0  # part of tokens; by filters, penalties or bias
    told_tokens: int = 0  # log-probabilities of answers
    told_places: int = 0  # and of prompts
    ties: int = 0
    stops: int = 0  # by a stop token
    halts: int = 0  # by a stop command
    cancels: int = 0
    expired: int = 0
    refused: int = 0
    load_failures: int = 0
    forgets: int = 0
    chunks: int = 0  # runs that end before the last known token
    late: int = 0  # launched steps computed while, or after, the engine went on
    preemptions: int = 0
    historic_preemptions: int = 0  # of requests with penalties or a prompt that is told
    evictions: int = 0
    loads: int = 0
    found_tokens: int = 0  # of prompts, in the prefix cache
    prefix_evictions: int = 0  # pages
    kept_tokens: int = 0  # of preempted requests, in the prefix cache
    prefetches: int = 0
    cancelled_loads: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """The circumstances of one episode."""

    num_pages: int
    max_running: int
    max_waiting: int
    max_step_tokens: int
    max_bypass_s: float
    max_prompt_logits: int
    max_slots: int
    host_bytes: int
    num_requests: int
    arrivals: float  # requests a step
    max_polls: int  # until a load is told of
    fail_share: float  # of loads
    answer_lens: tuple[int, ...]  # tokens
    unrest: float  # chance of a cancel or stop, and of a forget, in a step
    memory: MemoryConfig  # of it: what is kept, what goes first, and whose shares there are
    wishes: float  # chance of a prefetch or a pin in a step

    @classmethod
    def draw(cls, rng: random.Random) -> Setting:
        max_running = rng.choice([1, 2, 3, 5, 8, 12])
        num_requests = rng.choice([8, 16, 32])
        return cls(
            num_pages=rng.choice([10, 14, 20, 32, 48, 80]),
            max_running=max_running,
            max_waiting=rng.choice([6, 100, 100]),
            max_step_tokens=rng.choice([max_running, max_running + 3, max_running + 16, 64]),
            max_bypass_s=rng.choice([0.0, 0.05, 0.5, 5.0]),
            max_prompt_logits=rng.choice([1, 8, 256]),
            max_slots=rng.choice([1, 2, 3, 4096]),
            host_bytes=rng.choice([0, 20_000, 100_000, 1 << 30]),
            num_requests=num_requests,
            arrivals=rng.choice([0.2, 1.0, num_requests]),
            max_polls=rng.choice([1, 1, 4, 20]),
            fail_share=rng.choice([0.0, 0.0, 0.1]),
            # Long answers outgrow the pool that their prompts fitted: somebody must give way.
            answer_lens=rng.choice([(1, 2, 5, 16), (1, 9, 40, 56), (40, 56, 90)]),
            unrest=rng.choice([0.0, 0.03, 0.1]),
            memory=MemoryConfig(
                prefix_cache=rng.random() < 0.9,
                eviction=rng.choice(["economy"] * 4 + ["lru", "split"]),
                adapter_share=rng.choice([0.3, 0.6]),
                tenant_share=rng.choice([1.0, 1.0, 1.0, 1.0, 0.7]),
                prefetch=rng.random() < 0.8,
            ),
            wishes=rng.choice([0.0, 0.02, 0.2]),
        )
