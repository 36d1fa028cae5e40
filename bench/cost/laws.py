"""What a model of a step may know of its adapters: the cost model's own terms, and rivals.

Owns the columns of each law, out of what a step log holds. All know the same of prompts, rows and
contexts. `padded` is the law of a kernel that gives every adapter of a batch the largest rank in
it (BGMV, as CaraServe writes it); `counts` knows how many adapters and tokens there are and no
rank. Pure; judged by judgement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...server.scheduling.least_squares import Numbers
from ...server.scheduling.step_work import StepWork
from ...server.step_meter import MeteredStep

ADAPTER_TERMS = ("adapters", "adapter_bytes", "lora_token_bytes")
FULL = "full"


@dataclass(frozen=True, slots=True)
class Law:
    name: str
    what: str  # its adapter terms, for the table
    columns: Callable[[Sequence[MeteredStep]], Numbers]  # [N steps, K]


def seconds_of(steps: Sequence[MeteredStep]) -> Numbers:
    return np.array([step.seconds for step in steps], np.float64)


def work_columns(steps: Sequence[MeteredStep], without: Sequence[str] = ()) -> Numbers:
    """Those of StepWork, but for some."""
    kept = [idx for idx, name in enumerate(StepWork._fields) if name not in without]
    works = np.array([step.work for step in steps], np.float64).reshape(-1, len(StepWork._fields))
    return works[:, kept]


def _without(*names: str) -> Callable[[Sequence[MeteredStep]], Numbers]:
    return lambda steps: work_columns(steps, names)


def _counts(steps: Sequence[MeteredStep]) -> Numbers:
    tokens = np.array([step.lora_tokens for step in steps], np.float64)
    base = work_columns(steps, ("adapter_bytes", "lora_token_bytes"))
    return np.column_stack([base, tokens])


def _padded(steps: Sequence[MeteredStep]) -> Numbers:
    """As many adapters, and as many tokens, of the largest one's bytes."""
    largest = np.array([step.max_adapter_bytes for step in steps], np.float64)
    adapters = np.array([step.work.adapters for step in steps], np.float64)
    tokens = np.array([step.lora_tokens for step in steps], np.float64)
    base = work_columns(steps, ("adapter_bytes", "lora_token_bytes"))
    return np.column_stack([base, adapters * largest, tokens * largest])


LAWS = (
    Law(FULL, "adapters, their bytes, tokens x bytes", work_columns),
    *(Law(f"no {name}", f"all but {name}", _without(name)) for name in ADAPTER_TERMS),
    Law("padded", "as full, every adapter as large as the largest", _padded),
    Law("counts", "adapters and their tokens, no rank", _counts),
    Law("none", "nothing of adapters", _without(*ADAPTER_TERMS)),
)
