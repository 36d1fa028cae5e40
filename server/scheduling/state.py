"""The table of requests: one row each, one numpy column per fact.

Owns rows, the waiting line and the stamps. Decides nothing: plan.py reads it, commit.py moves
it on, the engine adds and drops rows. A request is only "tokens known" (prompt and answer so
far) ahead of "tokens computed" (whose KV is in pages), so prompt chunks, decoding and
recomputing after a preemption are one thing. Both columns count what a launched step will
bring; the values in `known_ids` may be a token or two behind.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError, Overloaded
from .flow import LineFlow
from .order import WaitingLine
from .policies import FCFS, Policy
from .records import Request
from .starts_book import StartsBook

MIN_RETRY_S, MAX_RETRY_S = 0.1, 60.0


class Status(IntEnum):
    FREE = 0  # no request in this row
    WAITING = 1  # holds no pages
    RUNNING = 2  # holds pages
    LEAVING = 3  # over, but a launched step still uses its pages, its adapter and the row


class SchedulerState:
    """Rows are small integers, reused after `drop`; a row also names the request's KV owner."""

    def __init__(self, max_running: int, max_waiting: int, *, policy: Policy = FCFS) -> None:
        # Preempted requests wait again, but they were counted when they came in.
        capacity = max_running + max_waiting
        self.max_running, self.max_waiting = max_running, max_waiting
        self.policy = policy
        self.line = WaitingLine(capacity)
        self.flow = LineFlow()
        self.starts = StartsBook()  # of rows whose adapter was not in the pool

        self.status = np.full(capacity, Status.FREE, np.int8)
        self.num_prompt = np.zeros(capacity, np.int64)  # tokens
        self.num_final = np.zeros(capacity, np.int64)  # tokens of prompt and longest answer
        self.num_known = np.zeros(capacity, np.int64)  # tokens, prompt and answer so far
        self.num_computed = np.zeros(capacity, np.int64)  # tokens whose KV is in pages
        self.num_pages = np.zeros(capacity, np.int64)  # KV pages held
        # Places of the prompt whose next token's log-probability is wanted, and how many of them
        # were told; a preemption untells nothing.
        self.num_to_tell = np.zeros(capacity, np.int64)
        self.num_told = np.zeros(capacity, np.int64)
        self.adapter_id = np.full(capacity, -1, np.int64)
        self.adapter_pages = np.zeros(capacity, np.int64)
        self.adapter_bytes = np.zeros(capacity, np.int64)  # at true ranks
        self.key = np.zeros(capacity, np.float64)  # the policy's, smaller is older
        self.seq = np.zeros(capacity, np.int64)  # order of arrival; settles equal keys
        self.num_preemptions = np.zeros(capacity, np.int64)
        self.tenant_id = np.zeros(capacity, np.int64)  # index in `tenants`
        self.num_cached_tokens = np.zeros(capacity, np.int64)  # found cached when it first ran
        self.ttft_s = np.zeros(capacity)  # duration: the bound on the first token
        # Instants; inf or nan where it has not happened.
        self.arrival_s = np.zeros(capacity)
        self.deadline_s = np.full(capacity, math.inf)
        self.overtaken_s = np.full(capacity, math.inf)  # first passed while it waited for room
        self.first_scheduled_s = np.full(capacity, math.nan)
        self.first_token_s = np.full(capacity, math.nan)
        self.last_token_s = np.full(capacity, math.nan)
        self.absent_since_s = np.full(capacity, math.nan)  # adapter not resident since; nan: it is
        self.load_wait_s = np.zeros(capacity)  # duration: absent so far, before the first run

        self.requests: list[Request | None] = [None] * capacity
        self.known_ids: list[list[int]] = [[] for _ in range(capacity)]
        # Names stay: tenants are those of the server's configuration, and they are few.
        self.tenants: list[str] = []
        self.leaving: set[int] = set()  # rows of that status: asked of every row of every step
        self._free = list(range(capacity - 1, -1, -1))
        self._row_of: dict[int, int] = {}
        self._tenant_ids: dict[str, int] = {}
        self._next_seq = 0

    @property
    def num_waiting(self) -> int:
        return len(self.line)

    @property
    def num_running(self) -> int:
        return len(self._row_of) - len(self.line)

    def can_add(self) -> bool:
        return len(self.line) < self.max_waiting

    def add(self, request: Request, now_s: float, *, resident: bool) -> int:
        """Puts a request into the line; `resident`: its adapter is in the pool, or it has none.

        Not while two steps are on their way: those whom the older one may end have kept their
        rows, and the newer one has let others in for them.

        Raises:
            Overloaded: the line is full.
        """
        if not self.can_add():
            raise Overloaded(
                f"{len(self.line)} requests are waiting, the limit is {self.max_waiting}",
                retry_after_s=self._retry_after_s(now_s),
            )
        if request.request_id in self._row_of:
            raise InternalError(f"request {request.request_id} is already in the table")
        # Else the table, of `max_running` and a full line, may have no row for whoever is let in.
        if len(self.holding_rows()) > self.max_running:
            raise InternalError("a request comes in between a launch and the landing before it")
        row = self._free.pop()
        self._row_of[request.request_id] = row
        self.requests[row] = request
        self.known_ids[row] = list(request.prompt_ids)
        self.num_prompt[row] = self.num_known[row] = len(request.prompt_ids)
        self.num_final[row] = len(request.prompt_ids) + request.max_new_tokens
        self.num_computed[row] = self.num_pages[row] = self.num_preemptions[row] = 0
        wants_prompt = request.sampling.prompt_logprobs >= 0
        self.num_to_tell[row] = len(request.prompt_ids) - 1 if wants_prompt else 0
        self.num_told[row] = 0
        self.adapter_id[row] = request.adapter_id
        self.adapter_pages[row] = request.adapter_pages
        self.adapter_bytes[row] = request.adapter_bytes
        self.tenant_id[row] = self._tenant_id_of(request.tenant)
        self.num_cached_tokens[row] = 0
        self.key[row], self.seq[row] = self.policy.sort_key(request), self._next_seq
        self.arrival_s[row], self.ttft_s[row] = request.arrival_s, request.ttft_s
        self.deadline_s[row] = request.deadline_s
        self.first_scheduled_s[row] = self.first_token_s[row] = self.last_token_s[row] = math.nan
        self.absent_since_s[row] = math.nan if resident else now_s
        self.load_wait_s[row] = 0.0
        self._next_seq += 1
        self._join_line(row)
        self.flow.join()
        return row

    def drop(self, row: int) -> None:
        """Forgets a request, whatever became of it. Its pages are the pool's business."""
        request = self.request(row)
        if self.status[row] == Status.WAITING:
            self.line.remove(row, *self.age(row))
        if row in self.leaving:
            self.leaving.remove(row)
        else:
            del self._row_of[request.request_id]
        self.status[row] = Status.FREE
        self.deadline_s[row] = math.inf
        self.requests[row] = None
        self.known_ids[row] = []
        self.starts.drop(row)
        self._free.append(row)

    def retire(self, row: int) -> None:
        """Running -> leaving: for the outside it is over; `drop` follows when its step has landed.

        Its place among those who run is given on at once, its row only when it is dropped: see
        `add` for why newcomers find rows all the same.
        """
        if self.status[row] != Status.RUNNING:
            raise InternalError(f"row {row} is in a launched step and not running")
        self.status[row] = Status.LEAVING
        self.leaving.add(row)
        self.deadline_s[row] = math.inf
        del self._row_of[self.request(row).request_id]

    def row_of(self, request_id: int) -> int | None:
        """None: no such request, or it is over (a cancel may cross the last token)."""
        return self._row_of.get(request_id)

    def request(self, row: int) -> Request:
        request = self.requests[row]
        if request is None:
            raise InternalError(f"row {row} holds no request")
        return request

    def age(self, row: int) -> tuple[float, int]:
        """What the order goes by: smaller is older."""
        return float(self.key[row]), int(self.seq[row])

    def has_begun(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these were given a token, or have one on its way."""
        return self.num_known[rows] > self.num_prompt[rows]

    def is_untold(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these cannot compute a token without logits: a prompt to tell, not begun."""
        return (self.num_to_tell[rows] > 0) & (self.num_told[rows] == 0)

    def is_whole(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these have nothing left to compute: their last token is on its way."""
        return self.num_known[rows] >= self.num_final[rows]

    def holding_rows(self) -> NDArray[np.int64]:
        """Everyone who holds pages, in the order of the rows."""
        return np.flatnonzero(self.status >= Status.RUNNING)

    def running_rows(self) -> list[int]:
        """Oldest first."""
        rows = np.flatnonzero(self.status == Status.RUNNING)
        order = np.lexsort((self.seq[rows], self.key[rows]))
        return rows[order].tolist()

    def rows_of_adapter(self, adapter_id: int) -> list[int]:
        """Everyone who names it, waiting or running."""
        return np.flatnonzero(self._is_open() & (self.adapter_id == adapter_id)).tolist()

    def absent_adapters(self, max_num: int) -> list[int]:
        """Adapters that the line waits for, in its order: so many, of those who never ran."""
        rows = self.line.rows()
        ids = self.adapter_id[rows[~np.isnan(self.absent_since_s[rows])]]
        # A line may name one adapter a thousand times; who stands behind those is not next.
        return list(dict.fromkeys(ids[: 4 * max_num].tolist()))[:max_num]

    def rows(self) -> list[int]:
        """Everyone, waiting or running."""
        return np.flatnonzero(self._is_open()).tolist()

    def _is_open(self) -> NDArray[np.bool_]:
        return (self.status == Status.WAITING) | (self.status == Status.RUNNING)

    def next_deadline_s(self) -> float:
        """Instant of the first deadline among all requests; inf: none."""
        return float(self.deadline_s.min())

    def enter(
        self, row: int, now_s: float, *, cached_tokens: int = 0, cached_pages: int = 0
    ) -> None:
        """Waiting -> running, behind what it finds in the prefix cache."""
        self.line.remove(row, *self.age(row))
        self.status[row] = Status.RUNNING
        self.num_computed[row], self.num_pages[row] = cached_tokens, cached_pages
        if math.isnan(self.first_scheduled_s[row]):
            self._stop_load_clock(np.array([row]), now_s)  # it may begin beside its load
            self.first_scheduled_s[row] = now_s
            self.num_cached_tokens[row] = cached_tokens

    def give_back(self, row: int) -> None:
        """Running -> waiting under its old key; everything known is to be computed again."""
        self.num_computed[row] = self.num_pages[row] = 0
        self.num_preemptions[row] += 1
        self._join_line(row)

    def adapter_arrived(self, adapter_id: int, now_s: float) -> None:
        """The adapter is resident: stop the load clock of those who wait for it."""
        self._stop_load_clock(self._unscheduled(adapter_id), now_s)

    def _stop_load_clock(self, rows: NDArray[np.int64], now_s: float) -> None:
        absent_s = now_s - self.absent_since_s[rows]
        self.load_wait_s[rows] += np.where(np.isnan(absent_s), 0.0, absent_s)
        self.absent_since_s[rows] = math.nan

    def adapter_left(self, adapter_id: int, now_s: float) -> None:
        """The adapter was evicted: start the load clock of those who wait for it."""
        self.absent_since_s[self._unscheduled(adapter_id)] = now_s

    def _unscheduled(self, adapter_id: int) -> NDArray[np.int64]:
        rows = self.line.rows()
        return rows[(self.adapter_id[rows] == adapter_id) & np.isnan(self.first_scheduled_s[rows])]

    def _tenant_id_of(self, tenant: str) -> int:
        if tenant not in self._tenant_ids:
            self._tenant_ids[tenant] = len(self.tenants)
            self.tenants.append(tenant)
        return self._tenant_ids[tenant]

    def _join_line(self, row: int) -> None:
        self.status[row] = Status.WAITING
        self.overtaken_s[row] = math.inf
        self.line.insert(row, *self.age(row))

    def _retry_after_s(self, now_s: float) -> float:
        # Little's law: a line of n whose head has waited w gives up one place every w / n.
        head = int(self.line.rows()[0])
        waited_s = now_s - self.request(head).arrival_s
        return min(max(waited_s / len(self.line), MIN_RETRY_S), MAX_RETRY_S)
