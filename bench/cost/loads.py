"""The loads that step logs are made with: where ranks matter most, where they may, where not.

Owns their settings. Each has two traces that differ in lengths, ranks and popularity: one to fit
to, one to judge by. Requests come in groups of all sizes, each sent at once and waited for, so that
batches of all sizes are there, also the small ones in which an adapter's weights are a large part
of what a step reads. Pure; sent by live_logs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..load import Ask
from ..workload.records import Piece, WorkloadAdapter
from ..workload.tokens import prompt_ids
from .judgement import DECODE, PROMPT


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    seed: int
    ranks: tuple[int, ...]
    num_of_rank: int  # adapters of each
    zipf: float  # exponent of their popularity; 0: all alike
    prompt: tuple[int, int]  # tokens, from and to
    answer: tuple[int, int]
    group: tuple[int, int]  # requests sent at once

    @property
    def adapters(self) -> tuple[WorkloadAdapter, ...]:
        """The most popular first; ranks take turns, so that no rank is the popular one."""
        weights = np.arange(1, self.num_of_rank * len(self.ranks) + 1) ** -self.zipf
        shares = (weights / weights.sum()).tolist()
        return tuple(
            WorkloadAdapter(f"{self.name}-{idx}", self.ranks[idx % len(self.ranks)], share)
            for idx, share in enumerate(shares)
        )

    def groups(self, vocab_size: int) -> Iterator[list[Ask]]:
        """Without end."""
        rng, adapters = np.random.default_rng(self.seed), self.adapters
        shares = [adapter.weight for adapter in adapters]
        while True:
            size = int(rng.integers(*self.group))
            chosen = rng.choice(len(adapters), size, p=shares)
            yield [self._ask(adapters[idx].name, rng, vocab_size) for idx in chosen]

    def _ask(self, adapter: str, rng: np.random.Generator, vocab_size: int) -> Ask:
        piece = Piece(int(rng.integers(1 << 40)), int(rng.integers(*self.prompt)))
        return Ask(
            prompt_ids((piece,), vocab_size=vocab_size),
            adapter=adapter if rng.random() >= BASE_SHARE else "",
            max_new_tokens=int(rng.integers(*self.answer)),
            ignore_eos=True,
        )


class LogsFailed(Exception):
    """A request of a load failed although there was room; what was logged is no result."""


BASE_SHARE = 1 / 8  # of the requests: without some, a base row could cost what an adapter does


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    what: str
    fit: Trace
    judged: Trace
    kind: str = DECODE  # of the steps that it is about


# On a CPU an adapter's weights are a small part of what a decode step reads, and calling its
# products costs more than they do; a prompt's products are another matter.
LOADS = (
    Load(
        "prompts",
        "ranks 8 to 256, long prompts",
        Trace("prompts-fit", 5, (8, 64, 256), 2, 0.0, (64, 513), (1, 5), (1, 4)),
        Trace("prompts-judged", 6, (16, 32, 128), 2, 1.0, (96, 641), (1, 7), (1, 5)),
        PROMPT,
    ),
    Load(
        "mixed",
        "ranks 8 to 256, small batches",
        Trace("mixed-fit", 1, (8, 64, 256), 4, 0.0, (8, 225), (8, 65), (1, 9)),
        Trace("mixed-judged", 2, (16, 32, 128), 4, 1.0, (16, 401), (16, 97), (1, 11)),
    ),
    Load(
        "small",
        "ranks 4 to 16",
        Trace("small-fit", 3, (8,), 12, 0.0, (8, 225), (8, 65), (1, 9)),
        Trace("small-judged", 4, (4, 16), 6, 1.0, (16, 401), (16, 97), (1, 11)),
    ),
)
