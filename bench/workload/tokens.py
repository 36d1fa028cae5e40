"""Pieces to token ids: the same everywhere and for ever, whatever version of numpy.

An id is a hash of the piece's seed and the place in the piece, so a shorter piece begins like
a longer one of the same seed. Knows no tokenizer. Called by the open-loop client before its clock
starts, and by whoever needs real ids.
"""

from __future__ import annotations

import numpy as np

from .errors import must
from .records import Piece
from .streams import mix

RESERVED = 3  # ids below are a tokenizer's special ones, never part of a prompt


def prompt_ids(
    prompt: tuple[Piece, ...], *, vocab_size: int, reserved: int = RESERVED
) -> list[int]:
    must(
        reserved < vocab_size < 2**32,
        f"vocab_size {vocab_size}: above the {reserved} reserved ids and below 2^32",
    )
    ids: list[int] = []
    for piece in prompt:
        ids.extend(_piece_ids(piece, vocab_size - reserved, reserved))
    return ids


def _piece_ids(piece: Piece, num_ids: int, reserved: int) -> list[int]:
    start = mix(np.array([piece.seed % 2**64], np.uint64))
    hashes = mix(start + np.arange(piece.num_tokens, dtype=np.uint64)) >> np.uint64(32)
    # Multiply and shift: 32 bits to an id without a bias worth naming.
    return (((hashes * np.uint64(num_ids)) >> np.uint64(32)) + np.uint64(reserved)).tolist()
