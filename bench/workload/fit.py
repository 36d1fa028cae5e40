"""Lengths scaled to a model: factors, caps, and how many requests a cap has changed.

A table of a 7B model's traffic is of no use to a model of 1,024 tokens as it stands. Nothing is
dropped: a request that is too long is cut, and counted. Called by make.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import must
from .records import Piece
from .streams import Ints


@dataclass(frozen=True, slots=True)
class Scale:
    prompt_factor: float = 1.0
    answer_factor: float = 1.0
    max_prompt_tokens: int = 0  # 0: no limit
    max_answer_tokens: int = 0  # 0: no limit
    # Of prompt and answer together; an answer gets at most half of it. 0: no limit.
    max_model_len: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_factor", "answer_factor"):
            must(getattr(self, name) > 0, f"{name} {getattr(self, name)}: must be above 0")
        for name in ("max_prompt_tokens", "max_answer_tokens", "max_model_len"):
            must(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: must not be negative")
        must(self.max_model_len != 1, "max_model_len 1: holds no prompt and answer")

    def holds(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """A prompt that has grown, with an answer that was fitted."""
        return (not self.max_prompt_tokens or prompt_tokens <= self.max_prompt_tokens) and (
            not self.max_model_len or prompt_tokens + answer_tokens <= self.max_model_len
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    prompt_tokens: Ints
    answer_tokens: Ints
    num_prompts_cut: int
    num_answers_cut: int


def fit_lengths(
    prompt_tokens: Ints, answer_tokens: Ints, scale: Scale, *, taken: int = 0
) -> Fitted:
    """`taken` tokens come before every prompt (a system prompt) and are not scaled."""
    no_limit = np.iinfo(np.int64).max
    prompt = np.maximum(np.rint(prompt_tokens * scale.prompt_factor), 1).astype(np.int64)
    answer = np.maximum(np.rint(answer_tokens * scale.answer_factor), 1).astype(np.int64)
    longest = scale.max_model_len
    most = np.minimum(scale.max_answer_tokens or no_limit, longest // 2 if longest else no_limit)
    short_answer = np.minimum(answer, most)
    room = np.full(len(prompt), scale.max_prompt_tokens or no_limit)
    if longest:
        room = np.minimum(room, longest - short_answer)
    must(
        len(room) == 0 or int(room.min()) > taken,
        f"system_tokens {taken}: a prompt may have {room.min(initial=no_limit)} tokens at most",
    )
    short_prompt = np.minimum(prompt, room - taken)
    return Fitted(
        short_prompt,
        short_answer,
        num_prompts_cut=int(np.count_nonzero(short_prompt < prompt)),
        num_answers_cut=int(np.count_nonzero(short_answer < answer)),
    )


def fit_pieces(pieces: Sequence[Piece], *, factor: float, num_tokens: int) -> tuple[Piece, ...]:
    """The pieces, scaled, up to so many tokens: what two prompts share from the beginning they
    still share.
    """
    fitted: list[Piece] = []
    whole = taken = 0
    for piece in pieces:
        whole += piece.num_tokens
        # From sums, so that rounding does not add up.
        upto = min(round(whole * factor), num_tokens)
        if upto > taken:
            fitted.append(Piece(piece.seed, upto - taken))
        taken = max(taken, upto)
    # Rounded away altogether: one token at least.
    return tuple(fitted) or (Piece(pieces[0].seed, num_tokens),)
