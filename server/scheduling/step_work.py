"""What a step has to do, in the quantities that cost time.

Numbers only: how long they take is the cost model's to say (cost_model.py). Measured by the
engine for every step it runs, and by the simulator for steps nobody runs. The rank-aware
quantities are bytes of true-rank weights: an adapter's bytes are the sum of rank x (in + out)
over its modules, so one number stands for all its ranks (CaraServe's sum of ranks, with widths).
"""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ids import BASE_ID


class StepWork(NamedTuple):
    """The order of the fields is the order of the cost model's coefficients."""

    steps: int  # 1: what a step costs whatever is in it
    prompt_chunks: int  # rows that compute more than one token
    prompt_tokens: int  # of those rows
    prompt_pairs: int  # of those rows: (token, token it attends to), causally
    decode_rows: int  # rows that compute one token
    decode_context: int  # tokens whose keys and values those rows read
    adapters: int  # distinct ones among the rows
    adapter_bytes: int  # of their weights, each counted once
    lora_token_bytes: int  # sum over all tokens of the bytes of their adapter's weights


class TimedStep(NamedTuple):
    work: StepWork
    seconds: float


NO_WORK = StepWork(*(0,) * len(StepWork._fields))


def measure_work(
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    adapter_ids: NDArray[np.int64],
    adapter_bytes: NDArray[np.int64],
) -> StepWork:
    """All [B], an element a row: tokens computed before, tokens to compute, its adapter (base:
    `BASE_ID`), and that adapter's bytes (base: 0).
    """
    prompt = counts > 1
    chunk, before = counts[prompt], starts[prompt]
    with_lora = adapter_ids != BASE_ID
    _, firsts = np.unique(adapter_ids[with_lora], return_index=True)
    return StepWork(
        steps=1,
        prompt_chunks=len(chunk),
        prompt_tokens=int(chunk.sum()),
        prompt_pairs=int((chunk * before + chunk * (chunk + 1) // 2).sum()),
        decode_rows=len(counts) - len(chunk),
        decode_context=int((starts[~prompt] + 1).sum()),
        adapters=len(firsts),
        adapter_bytes=int(adapter_bytes[with_lora][firsts].sum()),
        lora_token_bytes=int((counts * adapter_bytes).sum()),
    )


def row_work(start: int, num_tokens: int, adapter_bytes: int) -> StepWork:
    """One row's part of a step, without the step itself; its adapter (0 bytes: the base) counts as
    if no other row had it.
    """
    num_adapters = int(adapter_bytes > 0)
    lora = (num_adapters, adapter_bytes, num_tokens * adapter_bytes)
    if num_tokens == 1:
        return StepWork(0, 0, 0, 0, 1, start + 1, *lora)
    pairs = num_tokens * start + num_tokens * (num_tokens + 1) // 2
    return StepWork(0, 1, num_tokens, pairs, 0, 0, *lora)


def add_work(work: StepWork, other: StepWork) -> StepWork:
    return StepWork._make(map(add, work, other))
