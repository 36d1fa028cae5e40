"""What a router sees of one replica, and of the request it has to place.

Plain data, and the one function that reads it off a replica's table. Holds no rules (router.py
does) and no clock. Filled by whoever holds the replicas: the simulator today.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import BASE_ID, PoolView
from .state import SchedulerState
from .step_work import NO_WORK, StepWork, measure_work


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """A request on its way to a replica."""

    number: int  # 0, 1, 2: in the order the router met them
    adapter_id: int = BASE_ID
    adapter_bytes: int = 0  # of its true-rank weights; 0 for the base
    num_prompt_tokens: int = 1
    tpot_s: float = float("inf")  # bound on the time per further token


@dataclass(frozen=True, slots=True)
class ReplicaView:
    replica_id: int  # keeps its meaning when others come and go
    num_running: int = 0
    num_waiting: int = 0
    todo_tokens: int = 0  # known and not yet computed, of running and waiting rows
    free_pages: int = 0
    resident: frozenset[int] = frozenset()  # adapters in the pool, or on their way there
    # All that waits, as one step of prompts, and the adapters in it.
    queue: StepWork = NO_WORK
    queue_adapters: frozenset[int] = frozenset()
    # One decode step of everyone, waiting ones included, after all that is known so far; and the
    # adapters in it.
    decode: StepWork = NO_WORK
    decode_adapters: frozenset[int] = frozenset()

    @property
    def num_requests(self) -> int:
        return self.num_running + self.num_waiting


def look_at(state: SchedulerState, pool: PoolView, *, replica_id: int) -> ReplicaView:
    """The view of a replica whose table and memory these are."""
    everyone, waiting = np.array(state.rows(), np.int64), state.line.rows()
    queue, queue_adapters = _work(
        state, waiting, starts=state.num_computed[waiting], counts=_todo(state, waiting)
    )
    decode, decode_adapters = _work(
        state, everyone, starts=state.num_known[everyone], counts=np.ones_like(everyone)
    )
    return ReplicaView(
        replica_id=replica_id,
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        todo_tokens=int(_todo(state, everyone).sum()),
        free_pages=pool.num_free,
        resident=frozenset(pool.adapters),
        queue=queue,
        queue_adapters=queue_adapters,
        decode=decode,
        decode_adapters=decode_adapters,
    )


def _todo(state: SchedulerState, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return state.num_known[rows] - state.num_computed[rows]


def _work(
    state: SchedulerState,
    rows: NDArray[np.int64],
    *,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> tuple[StepWork, frozenset[int]]:
    if not len(rows):
        return NO_WORK, frozenset()
    adapter_ids = state.adapter_id[rows]
    work = measure_work(starts, counts, adapter_ids, state.adapter_bytes[rows])
    return work, frozenset(adapter_ids.tolist()) - {BASE_ID}
