"""The open requests' lives, from the door to the last word.

Lets a request in or turns it away, passes its tokens on, ends it with the right event, and lets
go of its pages, its adapter and its row together. Decides nothing about when it runs
(scheduling/plan.py) and starts no step (engine.py, which calls all of this).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters.errors import AdapterRefused
from .engine_parts import EngineParts
from .errors import DeadlineExceeded, GivenUp, InternalError, Overloaded
from .execution.batch import StepResult
from .intake import as_request, refusal
from .memory.pool import KvOwner
from .outbox import Outbox
from .overlap import Airspace
from .reuse import Reuse
from .scheduling.records import BASE_ID, Ending, Outcome, Request, StepPlan
from .scheduling.starts import StartTold
from .scheduling.state import MAX_RETRY_S, MIN_RETRY_S
from .scheduling.timings import start_told, timings
from .seam import Finish, Progress, PromptLogprobs, Reject, Submit
from .stats import Counters


class Lives:
    def __init__(
        self,
        parts: EngineParts,
        *,
        airspace: Airspace,
        counters: Counters,
        outbox: Outbox,
        reuse: Reuse,
    ) -> None:
        self._state, self._pool, self._residency = parts.state, parts.pool, parts.residency
        self._gate, self._clock = parts.gate, parts.clock
        self._airspace, self._counters, self._outbox = airspace, counters, outbox
        self._reuse = reuse
        self._started: dict[int, StartTold] = {}  # by row, from its first token on

    # The door

    def submit(self, submit: Submit) -> None:
        """Into the line, or away with the reason."""
        now_s = self._clock.now_s()
        card = submit.adapter
        adapter_id = self._residency.intern(card) if card else BASE_ID
        request = as_request(submit, adapter_id, now_s)
        error = refusal(request, card, self._gate)
        if error is not None:
            self.reject(submit.request_id, error)
            return
        resident = card is None or self._residency.is_resident(adapter_id)
        try:
            row = self._state.add(request, now_s, resident=resident)
        except Overloaded as full:
            self.reject(submit.request_id, full)
            return
        if card is not None:
            self._residency.use(adapter_id, now_s)
            self._counters.requests_with_adapter += 1
            self._counters.pool_hits += resident
        self._reuse.open(row)

    # What steps bring

    def tell(self, result: StepResult) -> None:
        """Log-probabilities of prompts: out before the tokens of the same step."""
        for told in result.told:
            if told.row in self._state.leaving:
                continue
            request_id = self._state.request(told.row).request_id
            self._outbox.put(PromptLogprobs(request_id, told.first_position, told.logprobs))

    def hear(self, outcomes: tuple[Outcome, ...], result: StepResult) -> None:
        """A step's tokens and endings."""
        for outcome in outcomes:
            if outcome.token is not None:
                self._note_start(outcome.row)
                wanted = outcome.row in result.logprobs
                logprobs = (result.logprobs[outcome.row],) if wanted else ()
                self._outbox.put(Progress(outcome.request_id, (outcome.token,), logprobs))
            if outcome.ending is not None:
                self._end(outcome.row, outcome.ending)

    def _note_start(self, row: int) -> None:
        """With its first token: how it came to it, if its adapter was not there."""
        if self._num_new_tokens(row) != 1:
            return
        told = start_told(self._state, row)
        if told is not None:
            self._started[row] = told
            self._counters.starts[told.way] += 1

    # Endings

    def cancel(self, request_id: int) -> None:
        row = self._state.row_of(request_id)
        if row is not None:  # else a cancel has crossed the last token
            self._counters.requests_cancelled += 1
            self._leave(row)

    def stop(self, request_id: int) -> None:
        row = self._state.row_of(request_id)
        if row is not None:
            self._end(row, Ending.STOP)

    def end_all(self, error: Exception) -> None:
        self._fail(self._state.rows(), error)

    def end_those_of(self, adapter_id: int, error: Exception) -> None:
        self._fail(self._state.rows_of_adapter(adapter_id), error)

    def reject(self, request_id: int, error: Exception) -> None:
        """The last word to a request that is not, or no longer, in the table."""
        self._counters.requests_failed += 1
        self._outbox.put(Reject(request_id, error))

    def _fail(self, rows: list[int], error: Exception) -> None:
        for row in rows:
            self.reject(self._state.request(row).request_id, error)
            self._leave(row)

    def _end(self, row: int, ending: Ending) -> None:
        request = self._state.request(row)
        if ending is Ending.EXPIRED:
            self._reuse.spoil(row)  # its pages went with the plan
            self.reject(request.request_id, self._expired(row))
        elif ending is Ending.ABORTED:
            self._counters.requests_aborted += 1
            self.reject(request.request_id, self._given_up(request))
        elif ending is Ending.BROKEN:
            self.reject(request.request_id, self._not_finite(request))
        else:
            self._counters.requests_finished += 1
            self._outbox.put(
                Finish(
                    request.request_id,
                    ending.value,
                    len(request.prompt_ids),
                    self._num_new_tokens(row),
                    timings(self._state, row),
                    num_cached_tokens=int(self._state.num_cached_tokens[row]),
                    start=self._started.get(row),
                )
            )
        self._leave(row)

    def _num_new_tokens(self, row: int) -> int:
        """Those that were told: `num_known` may count one that is on its way."""
        return len(self._state.known_ids[row]) - len(self._state.request(row).prompt_ids)

    def _expired(self, row: int) -> Exception:
        request = self._state.request(row)
        return DeadlineExceeded(
            f"the deadline passed {request.deadline_s - request.arrival_s:.3f} s after the "
            f"request came, with {self._num_new_tokens(row)} of {request.max_new_tokens} tokens "
            "made",
            field="deadline",
        )

    def _given_up(self, request: Request) -> Exception:
        waited_s = self._clock.now_s() - request.arrival_s
        return GivenUp(
            f"could not have begun within its ttft of {request.ttft_s:g} s: "
            f"{waited_s:.3g} s waited",
            field="slo.ttft_s",
            # As long again, for then those who came with it are gone; whoever is back at once only
            # makes the line longer.
            retry_after_s=min(max(waited_s, MIN_RETRY_S), MAX_RETRY_S),
        )

    def _not_finite(self, request: Request) -> Exception:
        if request.adapter_id == BASE_ID:
            return InternalError("the base model's logits are not finite")
        name = self._residency.key_of(request.adapter_id).name
        return AdapterRefused(
            f"adapter {name!r} gives logits that are not finite in this server's dtype",
            field="adapter",
        )

    # Letting go

    def take_back(self, lost: Sequence[int], now_s: float) -> None:
        """Of rows whose part of a step is void, and that wait again: nothing of it stays."""
        back = StepPlan(now_s=now_s, preemptions=tuple(lost))
        self._reuse.give_back(back)
        self._pool.apply(back)
        self._reuse.reopen(back)
        self._counters.lost_rows += len(back.preemptions)

    def let_go_of_released(self) -> None:
        """Of those who left while a step still used what they hold, and that has landed."""
        for row in self._airspace.released(self._state):
            self._let_go(row)

    def _leave(self, row: int) -> None:
        """The request is over, whatever became of it; what a step on its way uses stays so long."""
        if self._airspace.uses(row):
            self._state.retire(row)
        else:
            self._let_go(row)

    def _let_go(self, row: int) -> None:
        """Pages, adapter and row go together."""
        adapter_id = self._state.request(row).adapter_id
        self._reuse.let_go(row)
        self._started.pop(row, None)
        self._pool.release(KvOwner(row))
        self._state.drop(row)
        if adapter_id != BASE_ID:
            self._residency.leave(adapter_id, self._clock.now_s())
