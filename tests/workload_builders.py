"""For tests of the workloads: settings with small defaults, and tolerances from sample sizes.

A tolerance is five standard errors: over all checks of these tests a right generator with a fresh
seed would fail one in some 10,000 times, and the seeds are fixed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lorry.bench.workload.fit import Scale
from lorry.bench.workload.lengths import Fixed
from lorry.bench.workload.quantiles import QuantileTable
from lorry.bench.workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest
from lorry.bench.workload.settings import WorkloadSettings

SIGMAS = 5.0


def make_settings(**changes: Any) -> WorkloadSettings:
    settings = WorkloadSettings(
        "test", seed=1, num_requests=50, rate_per_s=2.0, num_adapters=8, lengths=Fixed(20, 5)
    )
    return replace(settings, **changes)


def make_small_workload() -> Workload:
    """Everything that a file can say, in four requests."""
    adapters = (WorkloadAdapter("a", 8, 0.75), WorkloadAdapter("b", 64, 0.25))
    requests = (
        WorkloadRequest(0.0, "a", (Piece(1, 5),), 3),
        WorkloadRequest(0.25, "b", (Piece(2, 4), Piece(3, 6)), 1, session=0, turn=0),
        WorkloadRequest(0.25, "", (Piece(4, 7),), 9, ttft_s=0.5, tpot_s=0.01),
        WorkloadRequest(1.5, "b", (Piece(2, 4), Piece(3, 6), Piece(5, 2)), 2, session=0, turn=1),
    )
    return Workload("small", 3, '{"settings":"by hand"}', adapters, requests)


def agrees(drawn: float, expected: float, *, sd: float, count: int) -> bool:
    """A mean of `count` draws, each of that standard deviation."""
    return abs(drawn - expected) <= SIGMAS * sd / math.sqrt(count)


def share_agrees(drawn: float, expected: float, count: int) -> bool:
    """A share of `count` yes-or-no draws; one draw is always forgiven."""
    slack = SIGMAS * math.sqrt(expected * (1 - expected) / count) + 1 / count
    return abs(drawn - expected) <= slack


def quantiles_agree(drawn: np.ndarray, table: QuantileTable) -> list[str]:
    """Percentiles that the draws miss: as many must lie below each as the table says. Tokens are
    whole, and equal values count for either side.
    """
    missed = []
    for percentile, tokens in zip(table.percentiles, table.tokens, strict=True):
        share = percentile / 100
        slack = SIGMAS * math.sqrt(share * (1 - share) / len(drawn)) + 1 / len(drawn)
        below, upto = (drawn < tokens - 0.5).mean(), (drawn <= tokens + 0.5).mean()
        if below > share + slack or upto < share - slack:
            missed.append(f"P{percentile}: {below:.4f} to {upto:.4f} below {tokens}")
    return missed


def cut_to(num_tokens: int) -> Scale:
    return Scale(max_model_len=num_tokens)
