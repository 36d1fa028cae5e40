"""The cases: which rows of which adapters one measurement is about, and what it must move.

Owns the list of the full run and the short ones, and the bytes that no implementation can avoid.
Pure: numbers in, numbers out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...kernels.lora import Segment
from .shapes import LAYERS, LayerShape

RANKS = {"r16": (16,), "r64": (64,), "mixed": (8, 16, 32, 64, 128)}
DECODE_ROWS = (1, 8, 64, 256)
PREFILL_ROWS = (512, 2048, 8192)
ADAPTERS = (1, 8, 64)
SHUFFLE_SEED = 20261121

# The cases of the quoted figures, in the order of their weight; all that there is time for in
# `--quick`.
QUICK = (
    "llama-8b/decode-T64-D64-*",
    "llama-8b/decode-T8-D8-mixed",
    "llama-8b/decode-T256-D64-mixed",
    "llama-8b/decode-T64-D1-r16",
    "llama-8b/prefill-T2048-D8-*",
    "llama-8b/prefill-T8192-D64-mixed",
    "qwen-0.5b/decode-T64-D64-*",
    "qwen-0.5b/prefill-T2048-D8-mixed",
)
CPU = (
    "tiny/decode-T8-D8-mixed",
    "tiny/prefill-T512-D8-mixed",
    "qwen-0.5b/decode-T1-D1-r16",
    "qwen-0.5b/decode-T8-D8-*",
    "qwen-0.5b/decode-T64-D8-mixed",
    "qwen-0.5b/decode-T64-D64-r16",
    "qwen-0.5b/prefill-T512-D8-mixed",
    "llama-8b/decode-T8-D8-mixed",
)


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of a step, in equal shares over adapters that lie in the order of their rows."""

    layer: LayerShape
    phase: str  # decode or prefill
    num_rows: int
    num_adapters: int  # different ones, at most num_rows
    ranks_name: str  # of RANKS

    @property
    def name(self) -> str:
        return (
            f"{self.layer.name}/{self.phase}-T{self.num_rows}-D{self.num_adapters}-"
            f"{self.ranks_name}"
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """One an adapter: each rank as often as the others, in a shuffled order.

        Sorted ranks would lie together in a grid, which flatters kernels that go by blocks.
        """
        kinds = RANKS[self.ranks_name]
        ranks = [kinds[i % len(kinds)] for i in range(self.num_adapters)]
        random.Random(SHUFFLE_SEED).shuffle(ranks)
        return tuple(ranks)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Rows of each adapter; shares differ by one row at most."""
        bounds = [i * self.num_rows // self.num_adapters for i in range(self.num_adapters + 1)]
        return tuple(Segment(bounds[i], bounds[i + 1], i) for i in range(self.num_adapters))


def all_cases() -> Iterator[Case]:
    for layer in LAYERS.values():
        for phase, rows in (("decode", DECODE_ROWS), ("prefill", PREFILL_ROWS)):
            for num_rows in rows:
                for num_adapters in ADAPTERS:
                    for ranks_name, kinds in RANKS.items():
                        # One adapter has no mix; more adapters than rows have no rows.
                        if num_adapters <= num_rows and (num_adapters > 1 or len(kinds) == 1):
                            yield Case(layer, phase, num_rows, num_adapters, ranks_name)


def pick_cases(patterns: Sequence[str]) -> tuple[Case, ...]:
    """Those that match a shell pattern, pattern by pattern; without any, all but the tiny ones."""
    cases = tuple(all_cases())
    if not patterns:
        return tuple(case for case in cases if case.layer.name != "tiny")
    found = (case for pattern in patterns for case in cases if fnmatchcase(case.name, pattern))
    return tuple(dict.fromkeys(found))


def factor_bytes(case: Case, element_bytes: int) -> int:
    """A and B of a layer at their true ranks, each adapter of the step once."""
    widths = sum(site.in_width + site.out_width for site in case.layer.sites)
    return sum(case.ranks) * widths * element_bytes


def row_bytes(case: Case, element_bytes: int) -> int:
    """Rows of a layer: each group's input read once, its outputs read once and written once."""
    widths = sum(group.in_width + 2 * group.out_width for group in case.layer.groups)
    return case.num_rows * widths * element_bytes


def must_move_bytes(case: Case, element_bytes: int) -> int:
    """What a layer's LoRA cannot avoid moving; what A gives need not leave the chip."""
    return factor_bytes(case, element_bytes) + row_bytes(case, element_bytes)


def num_layers(case: Case, element_bytes: int, cache_bytes: int, max_layers: int) -> int:
    """Layers to cycle over, each with bytes of its own, so that none is found in the cache again.

    Twice the cache: when a layer's turn comes again, as much as the cache holds has passed twice.
    """
    wanted = -(-2 * cache_bytes // must_move_bytes(case, element_bytes))
    return min(max(2, wanted), max_layers)
