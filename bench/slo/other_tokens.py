"""A load in other tokens: no cell finds in a server's prefix cache what an earlier one left there.

Pure. Owns how pieces get other seeds: those that were equal still are, so what a workload shares
within itself (a system prompt, the turns of a conversation) it shares as before. Called by
cells.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..workload.records import Piece, Workload
from ..workload.streams import piece_seeds


def with_other_tokens(workload: Workload, salt: str) -> Workload:
    """One salt, one set of tokens; of two salts no prompts begin alike."""
    # Tokens come from the seed modulo 2^64 (workload/tokens.py).
    seeds = sorted({piece.seed % 2**64 for one in workload.requests for piece in one.prompt})
    ids = np.array(seeds, np.uint64).view(np.int64)
    other = dict(zip(seeds, piece_seeds(0, salt, ids), strict=True))
    return replace(
        workload,
        requests=tuple(
            replace(
                one, prompt=tuple(Piece(other[p.seed % 2**64], p.num_tokens) for p in one.prompt)
            )
            for one in workload.requests
        ),
    )
