"""The definition of correct: what lies where after each half of a hand-over, in plain torch.

Knows no slips, words or addresses: those are tested for what they say, this for numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def sent_rows(hidden_TI: Tensor, start: int, cuts: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What each shard finds: its rows [first, end) of those from `start` on."""
    return [hidden_TI[start + first : start + end].clone() for first, end in cuts]


def add_answers(
    out_TO: Tensor, start: int, cuts: Sequence[tuple[int, int]], answers_TO: Sequence[Tensor]
) -> None:
    """out[start + t] += answer[t], summed in fp32 and rounded once; other rows stay."""
    for (first, end), answer_TO in zip(cuts, answers_TO, strict=True):
        rows = out_TO[start + first : start + end]
        rows.copy_((rows.float() + answer_TO.float()).to(out_TO.dtype))
