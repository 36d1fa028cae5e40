"""The largest steps a server may meet, as rows: what they take, no later step takes more.

Owns their shape. First as many tokens as a step may have, with as many logits and as much asked
of the sampler; then one chunk at the end of the longest context beside everyone else's single
token: attention takes long contexts in blocks of bounded size, so one shows what all would need.
All rows share the same pages over and over. Called by the runner at start.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..scheduling.sampling import SamplingParams
from .batch import StepCapacity, StepRow

TAIL_TOKENS = 64  # a chunk at the longest context
# Everything a request can ask of its tokens at once; what is asked of the prompt is in `tell`.
DEMANDING = SamplingParams(
    temperature=0.7,
    top_k=1000,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
    logprobs=20,
    prompt_logprobs=20,
)


def largest_step(limits: StepCapacity, pages: Sequence[int]) -> list[StepRow]:
    """Long chunks first, and one token at least for everyone."""
    left = min(limits.max_prompt_logits, limits.max_step_tokens)
    rows: list[StepRow] = []
    for row, num_tokens in enumerate(_largest_lens(limits)):
        told = min(left, num_tokens)
        left -= told
        rows.append(_row(row, num_tokens, 0, pages, told))
    return rows


def longest_step(limits: StepCapacity, pages: Sequence[int]) -> list[StepRow]:
    first, *others = _largest_lens(limits)
    first = min(first, TAIL_TOKENS)
    rows = [_row(0, first, limits.max_model_len - first, pages, 0)]
    return rows + [_row(row, 1, 0, pages, 0) for row in range(1, len(others) + 1)]


def _row(row: int, num_tokens: int, start: int, pages: Sequence[int], num_told: int) -> StepRow:
    end = start + num_tokens
    return StepRow(
        row,
        [0] * num_tokens,
        num_tokens,
        start,
        pages,
        -1,
        True,
        DEMANDING,
        known_ids=[0] * (end + 1),
        num_prompt=end + 1,
        tell=range(start, start + num_told),
    )


def _largest_lens(limits: StepCapacity) -> list[int]:
    lens, left = list[int](), limits.max_step_tokens
    for to_come in range(min(limits.max_running, limits.max_step_tokens) - 1, -1, -1):
        lens.append(min(limits.max_model_len, left - to_come))
        left -= lens[-1]
    return lens
