"""What a step tells beside its tokens: log-probabilities of prompts and of what was sampled.

Owns which logits they are taken from. The host has to look at them, so a step that tells is over
before the next one begins. Does not know the arithmetic (logprobs.py does). Called by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

import torch
from torch import Tensor

from ..scheduling.sampling import TokenLogprobs
from .batch import Batch, StepResult, StepRow, ToldPrompt
from .logprobs import token_logprobs


def tells(batch: Batch) -> bool:
    return bool(batch.told) or any(row.sampling.logprobs >= 0 for row in batch.drawn)


def tell(batch: Batch, logits_BV: Tensor, drawn_BV: Tensor, result: StepResult) -> StepResult:
    """The result with everything its rows want to be told; `drawn_BV`: of the sampled rows."""
    told = _tell_prompts(batch, logits_BV)
    broken = dict.fromkeys(result.not_finite)
    broken |= {one.row: None for one in told if any(isnan(at.logprob) for at in one.logprobs)}
    tokens = {row: token for row, token in result.tokens.items() if row not in broken}
    return replace(
        result,
        tokens=tokens,
        not_finite=tuple(broken),
        logprobs=_judge(batch.drawn, drawn_BV, tokens),
        told=tuple(one for one in told if one.row not in broken),
    )


def _tell_prompts(batch: Batch, logits_BV: Tensor) -> list[ToldPrompt]:
    """What the model thought of each prompt's own next tokens."""
    told: list[ToldPrompt] = []
    for row, first in batch.told:
        wanted = [row.known_ids[place + 1] for place in row.tell]
        tops = [row.sampling.prompt_logprobs] * len(wanted)
        records = token_logprobs(logits_BV[first : first + len(wanted)], wanted, tops)
        told.append(ToldPrompt(row.row, row.tell.start + 1, tuple(records)))
    return told


def _judge(
    drawn: Sequence[StepRow], logits_BV: Tensor, tokens: dict[int, int]
) -> dict[int, TokenLogprobs]:
    """What the model thought of the tokens sampled, for the rows that want to know."""
    wanted = [i for i, row in enumerate(drawn) if row.sampling.logprobs >= 0 and row.row in tokens]
    if not wanted:
        return {}
    if len(wanted) < len(drawn):
        idx = torch.tensor(wanted, dtype=torch.int64, device=logits_BV.device)
        logits_BV = logits_BV.index_select(0, idx)
    rows = [drawn[i] for i in wanted]
    records = token_logprobs(
        logits_BV, [tokens[row.row] for row in rows], [row.sampling.logprobs for row in rows]
    )
    return {row.row: record for row, record in zip(rows, records, strict=True)}
