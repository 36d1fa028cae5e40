"""What was chosen for rows whose adapter was not in the pool, until they are dropped.

Owns the last choice of each row and its instant. A choice that is made again counts from when it
was first made; a changed one counts anew; one that never came to it, since the load was over
first, was a wait. Part of the table: `advance` writes it, the engine reads it when it publishes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from .records import StepPlan
from .starts import Start, StartTold, Way

OVERTAKEN = "the load was over before it could begin"


@dataclass(slots=True)
class _Chosen:
    start: Start
    chosen_s: float  # instant
    began: bool = False  # it has been in a step


@dataclass(slots=True)
class StartsBook:
    _chosen: dict[int, _Chosen] = field(default_factory=dict[int, _Chosen])  # by row

    def __len__(self) -> int:
        return len(self._chosen)

    def chose(self, plan: StepPlan) -> None:
        """What a plan that is launched has chosen."""
        for row, start in plan.starts:
            known = self._chosen.get(row)
            if known is None or known.start.way is not start.way:
                self._chosen[row] = _Chosen(start, plan.now_s)
        if self._chosen:
            self._begin(plan)

    def _begin(self, plan: StepPlan) -> None:
        cold = {planned.row for planned in plan.starts}
        for run in plan.runs:
            chosen = self._chosen.get(run.row)
            if chosen is None or chosen.began:
                continue
            chosen.began = True
            if run.row not in cold and chosen.start.way is not Way.WAIT:
                predicted_s = chosen.start.others_s.get(Way.WAIT, chosen.start.predicted_s)
                chosen.start = replace(
                    chosen.start, way=Way.WAIT, reason=OVERTAKEN, predicted_s=predicted_s
                )

    def told(self, row: int, first_token_s: float) -> StartTold | None:
        """None: its adapter was there, or nothing was chosen. nan: there was no token."""
        chosen = self._chosen.get(row)
        if chosen is None:
            return None
        start = chosen.start
        measured_s = 0.0 if math.isnan(first_token_s) else first_token_s - chosen.chosen_s
        return StartTold(start.way, start.reason, start.predicted_s, measured_s)

    def drop(self, row: int) -> None:
        self._chosen.pop(row, None)
