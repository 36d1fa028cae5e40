"""The client's side of a simulated run: what came back for each request, and when.

Hears what engines say, at instants of their clocks, and adds the way back. One for all replicas
of a run: a request's number is its place in the workload. Makes the same record as the open-loop
client (bench/slo/stamps.py), so that live and simulated runs are judged by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from ...server.rpc.status import answer_for
from ...server.seam import Finish, Progress, Reject, Report
from ..slo.stamps import Outcome, RequestStamps, Run
from ..workload.records import Workload

_OUTCOMES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.TIMEOUT,
}


@dataclass(slots=True)
class _Answer:
    given_up_s: float  # instant at which the client's patience ends
    num_tokens: int = 0
    first_s: float = math.nan
    last_s: float = math.nan
    pieces_s: list[float] = field(default_factory=list[float])  # empty unless all are kept
    outcome: Outcome = Outcome.FAILED  # until it has ended
    end_s: float = math.nan
    error: str = "no answer"


class StampBook:
    """`all_pieces`: an instant for every token; else only for the first and the last."""

    def __init__(
        self, workload: Workload, *, reply_s: float, timeout_s: float, all_pieces: bool
    ) -> None:
        self._workload, self._all_pieces = workload, all_pieces
        self._reply_s = reply_s
        self._answers = [_Answer(one.at_s + timeout_s) for one in workload.requests]
        self.num_ended = 0  # answers that got their last word

    def hear(self, report: Report, now_s: float) -> None:
        heard_s, answers = now_s + self._reply_s, self._answers
        for event in report.events:
            match event:
                case Progress(request_id=index):
                    self._add(answers[index], (heard_s,))
                case Finish(request_id=index):
                    self._end(index, Outcome.OK, heard_s, "")
                case Reject(request_id=index, error=error):
                    answer = answer_for(error)
                    outcome = _OUTCOMES.get(answer.code, Outcome.FAILED)
                    self._end(index, outcome, heard_s, f"{answer.code.name}: {answer.message}")
                case _:
                    pass  # of adapters, and what nobody asked for

    def hear_decodes(self, indices: Sequence[int], instants_s: Sequence[float]) -> None:
        """Each of these requests got a token at each of these instants."""
        heard_s = [instant_s + self._reply_s for instant_s in instants_s]
        for index in indices:
            self._add(self._answers[index], heard_s)

    def run(self, policy: str) -> Run:
        requests = self._workload.requests
        stamps = [
            _stamps(index, request.at_s, answer, self._all_pieces)
            for index, (request, answer) in enumerate(zip(requests, self._answers, strict=True))
        ]
        return Run(policy, tuple(stamps), simulated=True)

    def _add(self, answer: _Answer, heard_s: Sequence[float]) -> None:
        if heard_s[-1] > answer.given_up_s:  # tokens of a step that ends after the client has gone
            heard_s = [at_s for at_s in heard_s if at_s <= answer.given_up_s]
        if not heard_s:
            return
        if not answer.num_tokens:
            answer.first_s = heard_s[0]
        answer.num_tokens += len(heard_s)
        answer.last_s = heard_s[-1]
        if self._all_pieces:
            answer.pieces_s.extend(heard_s)

    def _end(self, index: int, outcome: Outcome, heard_s: float, error: str) -> None:
        """A client's patience ends by its own clock, whatever is on its way to it by then."""
        answer = self._answers[index]
        if heard_s > answer.given_up_s:
            outcome, heard_s = Outcome.TIMEOUT, answer.given_up_s
            error = "the client's patience ended"
        answer.outcome, answer.end_s, answer.error = outcome, heard_s, error
        self.num_ended += 1


def _stamps(index: int, due_s: float, answer: _Answer, all_pieces: bool) -> RequestStamps:
    num = answer.num_tokens
    if all_pieces:
        pieces_s, tokens = tuple(answer.pieces_s), (1,) * num
    else:
        pieces_s = (answer.first_s, answer.last_s)[: min(num, 2)]
        tokens = (1, num - 1)[: min(num, 2)]
    return RequestStamps(
        index=index,
        due_s=due_s,
        sent_s=due_s,  # a simulated client is never late
        outcome=answer.outcome,
        end_s=answer.end_s,
        piece_s=pieces_s,
        piece_tokens=tokens,
        error=answer.error,
    )
