"""One call as `n` requests to the engine, which differ in their seeds.

Owns how the seed of each answer is made: a client that knows `Final.seed` can have any one of
them again, alone. Called by generation.py.
"""

from __future__ import annotations

import dataclasses

from ...adapters.key import AdapterCard
from ..seam import SamplingParams, Submit
from .request import Wish

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: the seeds of 2**64 answers all differ
# The sampler's noise is a sequence of the same generator: this keeps the two apart.
ANSWERS = 0xA5A5_1F83_D9AB_FB41


def answer_seed(seed: int, index: int) -> int:
    """The first answer's is the seed itself; the others' are far apart.

    One step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) for each index, so that seeds that
    follow each other, as clients like to use, share no answer.
    """
    if index == 0:
        return seed
    mixed = ((seed ^ ANSWERS) + index * STEP) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def submits(
    wish: Wish, request_ids: list[int], *, tenant: str, card: AdapterCard | None, timeout_s: float
) -> list[Submit]:
    """One for each id, in the order of the answers."""
    return [
        Submit(
            request_id=request_id,
            tenant=tenant,
            adapter=card,
            prompt_ids=wish.prompt_ids,
            max_new_tokens=wish.max_new_tokens,
            sampling=_sampling(wish.terms.sampling, index),
            stop_ids=wish.terms.stop_ids,
            ttft_s=wish.terms.ttft_s,
            tpot_s=wish.terms.tpot_s,
            timeout_s=timeout_s,
        )
        for index, request_id in enumerate(request_ids)
    ]


def _sampling(asked: SamplingParams, index: int) -> SamplingParams:
    if index == 0:
        return asked
    # The prompt is the same for all: its log-probabilities are told once.
    return dataclasses.replace(asked, seed=answer_seed(asked.seed, index), prompt_logprobs=-1)
