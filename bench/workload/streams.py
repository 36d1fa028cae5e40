"""Streams of chance: one a purpose, all from the workload's seed.

Each part of a workload draws from a stream of its own, so that a change of one (the rate, say)
leaves the others as they were: the same requests at other instants. Knows no workload. The hash
is written out here because token ids must never change with a version of a library.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
PIECE_SEED_BITS = 53  # what any reader of JSON keeps exactly


def stream(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood, OOPSLA'14) of each number."""
    x = numbers * _STEP + _STEP
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def piece_seeds(seed: int, purpose: str, ids: Ints) -> list[int]:
    """One for each id: others for every workload's seed and purpose."""
    origin = np.array([seed % 2**64, zlib.crc32(purpose.encode())], np.uint64)
    start = mix(mix(origin[:1]) ^ origin[1:])
    return (mix(start + ids.astype(np.uint64)) >> np.uint64(64 - PIECE_SEED_BITS)).tolist()
