"""Into how many pieces a context is cut when one token looks at it.

Owns the rule alone: pieces of one length, because the longest is what a step waits for. A piece's
borders follow from the request's own context and the model, never from who else is in the step:
the sum over a context is made in the same order in any batch.
Used where work lists are made and where room for partial results is taken.
"""

from __future__ import annotations

import numpy as np

from ..ragged import Ints

SPLIT_TOKENS = 256  # no piece is shorter, but for a last one that rounding leaves
SPLIT_STEP = 64  # pieces begin at multiples of it, and it is one of every block of cells
# A token's pieces times KV heads: enough programs to keep the memory of the largest chip busy
# with one request, and few enough that partial results take little room.
SPLIT_PROGRAMS = 256
MIN_SPLITS, MAX_SPLITS = 16, 64


def max_splits(num_kv_heads: int) -> int:
    """Pieces of the longest contexts of a model."""
    return min(max(SPLIT_PROGRAMS // num_kv_heads, MIN_SPLITS), MAX_SPLITS)


def most_splits(max_context_tokens: int, limit: int) -> int:
    """Pieces that no context of at most that many tokens is cut into more than."""
    return min(max(max_context_tokens // SPLIT_TOKENS, 1), limit)


def split_tokens(contexts: Ints, limit: int) -> Ints:
    """Tokens of the pieces of each context, of which there are at most `limit`."""
    pieces = np.clip(contexts // SPLIT_TOKENS, 1, limit)
    return -(-contexts // (pieces * SPLIT_STEP)) * SPLIT_STEP
