"""A step that was launched and may still be on its way, and the result it lands with.

Owns what `Runner.launch` gives back, and the way of sampled tokens to the host: into pinned
memory, with an event after them. At most two flights are up at once, and they are waited for in
the order they were launched. Does not know how a step is computed; the engine's overlapped loop
holds flights, the plain one waits at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .batch import StepResult, StepRow
from .staging import MAX_FLIGHTS


class Flight(Protocol):
    """A launched step."""

    def wait(self) -> StepResult:
        """Returns when the sampled tokens are on the host and nothing of the step runs any more;
        the same result when asked again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Landed:
    """A flight that was over when it was launched: on a CPU, or where the host had to look."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class TokenPost:
    """Pinned places for the tokens of the flights that are up, used in turn."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._places = [
            torch.zeros(max_rows, dtype=torch.int64, pin_memory=True) for _ in range(MAX_FLIGHTS)
        ]
        self._flights: list[Flight | None] = [None] * MAX_FLIGHTS
        self._turn = 0

    def send(self, rows: Sequence[int], tokens_B: Tensor | None) -> Flight:
        """Everything launched so far belongs to the step. No tokens: it is only waited for."""
        before = self._flights[self._turn]
        if before is not None:
            before.wait()  # it has its tokens, whoever asks for them later
        place = self._places[self._turn][: len(rows)]
        if tokens_B is not None:
            place.copy_(tokens_B, non_blocking=True)
        landed = torch.cuda.Event()
        landed.record(torch.cuda.current_stream(self._device))
        flight = _Airborne(tuple(rows), place, landed)
        self._flights[self._turn] = flight
        self._turn = (self._turn + 1) % MAX_FLIGHTS
        return flight


class _Airborne:
    """A flight on a GPU."""

    def __init__(
        self, rows: tuple[int, ...], tokens_host: Tensor, landed: torch.cuda.Event
    ) -> None:
        self._rows = rows
        self._tokens_host = tokens_host
        self._landed = landed
        self._result: StepResult | None = None

    def wait(self) -> StepResult:
        if self._result is None:
            self._landed.synchronize()
            self._result = result_of(self._rows, self._tokens_host.tolist())
        return self._result


def result_of(rows: Sequence[int], tokens: Sequence[int]) -> StepResult:
    """Negative: the row's logits were not finite, and it got none."""
    pairs = list(zip(rows, tokens, strict=True))
    return StepResult(
        tokens={row: token for row, token in pairs if token >= 0},
        not_finite=tuple(row for row, token in pairs if token < 0),
    )


def without_lost(result: StepResult, rows: Sequence[StepRow], slots: frozenset[int]) -> StepResult:
    """What is left of a result when the rows of these slots are void."""
    lost = {row.row for row in rows if row.adapter_slot in slots}
    if not lost:
        return result
    return replace(
        result,
        tokens={row: token for row, token in result.tokens.items() if row not in lost},
        not_finite=tuple(row for row in result.not_finite if row not in lost),
        logprobs={row: one for row, one in result.logprobs.items() if row not in lost},
        told=tuple(one for one in result.told if one.row not in lost),
        lost=tuple(row.row for row in rows if row.row in lost),
    )
