"""What a request spends outside of the engine: client, wire, front end, pipe.

Owns the probe, requests one after the other to an idle server, and the line through what they
say: the client's time to the first token, less the engine's own queue and prefill. Measured idle
on purpose: under load a request waits in the pipe for the end of a step, and that wait the
simulator makes itself. Called by versus.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ...proto.async_client import AsyncClient

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Solo:
    """One request that was alone."""

    num_prompt_tokens: int
    outside_s: float  # time to the first token that the engine did not have it


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """A line: there and back together, since only their sum can be seen."""

    base_s: float
    per_token_s: float  # of the prompt


async def probe(
    address: str,
    prompts: Sequence[Sequence[int]],
    *,
    num_rounds: int,
    clock: Clock = time.perf_counter,
) -> list[Solo]:
    """Each prompt once a round, to the base; a first round, which warms, is left out."""
    found: list[Solo] = []
    async with AsyncClient(address) as client:
        for number in range(num_rounds + 1):
            for prompt in prompts:
                one = await _ask(client, prompt, clock)
                if number:
                    found.append(one)
    return found


async def _ask(client: AsyncClient, prompt: Sequence[int], clock: Clock) -> Solo:
    first_s, sent_s = 0.0, clock()
    async with client.generate(prompt, max_new_tokens=2, ignore_eos=True) as stream:
        async for _ in stream:
            first_s = first_s or clock()
        spent = stream.final.timing
    return Solo(len(prompt), first_s - sent_s - spent.queue_s - spent.prefill_s)


def fit_front_end(found: Sequence[Solo]) -> FrontEnd:
    """Through the median of each length, so that one hiccup moves nothing; never negative."""
    by_len: dict[int, list[float]] = {}
    for one in found:
        by_len.setdefault(one.num_prompt_tokens, []).append(one.outside_s)
    lens = np.array(sorted(by_len), np.float64)
    middle_s = np.array([median(by_len[int(num)]) for num in lens])
    per_token_s = 0.0
    if len(lens) > 1:
        away = lens - lens.mean()
        per_token_s = max(float((away * middle_s).sum() / (away**2).sum()), 0.0)
    return FrontEnd(max(float((middle_s - per_token_s * lens).mean()), 0.0), per_token_s)
