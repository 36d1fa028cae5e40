"""The ledger: where the tiles of every open slot lie in host memory, for all helpers at once.

Owns the form of a slot's page: whole numbers in memory that every helper maps, so that opening a
slot sends nobody more than a place. Knows no pages of the pool and no processes. Written by the
crew, read by the helpers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....kernels.lora import FactorTiles

WORD_BYTES = 8
_SITE_WORDS = 5  # site, rank, bits of the scale, tiles of A, tiles of B


@dataclass(frozen=True, slots=True, eq=False)
class SitePlaces:
    """One site of an open slot, as a helper sees it."""

    rank: int
    scale: float
    a_offsets: tuple[int, ...]  # elements from the slab's start, in the order of the image's tiles
    b_offsets: tuple[int, ...]


def packed(factors: Mapping[int, FactorTiles]) -> NDArray[np.int64]:
    """As many whole numbers as a page of the ledger takes."""
    scales = np.array([tiles.scale for tiles in factors.values()], dtype=np.float64)
    head = np.empty((len(factors), _SITE_WORDS), dtype=np.int64)
    head[:, 2] = scales.view(np.int64)
    offsets: list[NDArray[np.int64]] = []
    for i, (site, tiles) in enumerate(factors.items()):
        head[i, :2] = site, tiles.rank
        head[i, 3:] = len(tiles.a_offsets), len(tiles.b_offsets)
        offsets.extend((tiles.a_offsets.numpy(), tiles.b_offsets.numpy()))
    count = np.array([len(factors)], dtype=np.int64)
    return np.concatenate([count, head.reshape(-1), *offsets])


def put(memory: Tensor, at: int, page: NDArray[np.int64]) -> None:
    """`at`: bytes, a multiple of eight."""
    target = memory[at : at + page.nbytes].view(torch.int64)
    target.copy_(torch.from_numpy(page))


def read(memory: Tensor, at: int) -> dict[int, SitePlaces]:
    """By site, in the order of the image."""
    usable = memory.numel() // WORD_BYTES * WORD_BYTES
    words = memory[:usable].view(torch.int64).numpy()[at // WORD_BYTES :]
    count = int(words[0])
    head = words[1 : 1 + count * _SITE_WORDS].reshape(count, _SITE_WORDS)
    scales: list[float] = np.ascontiguousarray(head[:, 2]).view(np.float64).tolist()
    lens = head[:, 3:].reshape(-1)
    total = int(lens.sum())
    start = 1 + count * _SITE_WORDS
    parts = np.split(words[start : start + total], np.cumsum(lens)[:-1]) if count else []
    return {
        int(head[i, 0]): SitePlaces(
            int(head[i, 1]),
            scales[i],
            tuple(parts[2 * i].tolist()),
            tuple(parts[2 * i + 1].tolist()),
        )
        for i in range(count)
    }
