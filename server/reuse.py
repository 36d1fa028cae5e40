"""What the engine tells the prefix cache: who may begin behind cached pages, and who leaves some.

Owns the moments: a row joins the line, has its first token, is let go of, and an adapter is gone.
Only what landed is told, and only of rows whose logits were finite. Decides neither hits nor
evictions (the plan does) and holds no pages. Called by engine.py, lives.py and adapter_news.py.
"""

from __future__ import annotations

from ..adapters.key import AdapterKey
from .engine_parts import EngineParts
from .execution.batch import StepResult
from .memory.prefix_hash import BASE_CONTENT, prefix_root
from .scheduling.commit import Awaited
from .scheduling.records import BASE_ID, Outcome, StepPlan


class Reuse:
    def __init__(self, parts: EngineParts) -> None:
        self._state, self._residency = parts.state, parts.residency
        self._prefixes, self._clock = parts.prefixes, parts.clock
        self._model, self._shared = parts.model, parts.share_prefixes
        # Roots under which requests of an adapter came, until it is forgotten.
        self._opened: dict[AdapterKey, set[bytes]] = {}
        self._spoilt: set[int] = set()  # rows that leave nothing

    def open(self, row: int) -> None:
        """It has joined the line, new or preempted."""
        state, request = self._state, self._state.request(row)
        is_base, doomed = request.adapter_id == BASE_ID, self._is_doomed(row)
        key = None if is_base else self._residency.key_of(request.adapter_id)
        root = prefix_root(
            scope="" if self._shared else request.tenant,
            content=key.content_hash if key else BASE_CONTENT,
            model=self._model,
        )
        if key and not doomed:
            self._opened.setdefault(key, set()).add(root)
        # The places of a prompt that is still to be told have to be computed.
        all_told = bool(state.num_told[row] >= state.num_to_tell[row])
        self._prefixes.open(
            row,
            root,
            state.known_ids[row],
            tenant=request.tenant,
            reusable=all_told and not doomed,
        )

    def reopen(self, plan: StepPlan) -> None:
        """Whoever was preempted by a plan that is under way now."""
        for row in plan.preemptions:
            self.open(row)

    def give_back(self, plan: StepPlan) -> None:
        """Preemptions that are not a planner's: what these rows computed is void. To be followed by
        `reopen`, when their pages are free.
        """
        self._prefixes.apply(plan)

    def landed(self, awaited: Awaited, outcomes: tuple[Outcome, ...], result: StepResult) -> None:
        """What a step computed is there: whole prompts are shared from their first token on."""
        self._spoilt.update(result.not_finite)
        for outcome in outcomes:
            # Decode steps tell nothing: what an answer adds is told when its row is let go of.
            if outcome.token is not None and outcome.row not in awaited.decoded:
                # The newest token is known and not computed.
                self._publish(outcome.row, len(self._state.known_ids[outcome.row]) - 1)

    def spoil(self, row: int) -> None:
        """What it computed is wrong, or gone."""
        self._spoilt.add(row)

    def let_go(self, row: int) -> None:
        """Before its pages are released, when no step uses them any more."""
        state = self._state
        known = len(state.known_ids[row])
        # Before its first token nobody has seen that its logits are finite.
        if row not in self._spoilt and known > state.num_prompt[row]:
            self._publish(row, min(int(state.num_computed[row]), known))
        self._spoilt.discard(row)
        self._prefixes.close(row)

    def forget(self, key: AdapterKey) -> None:
        """Deleted or replaced: nobody will ask for its KV again."""
        for root in self._opened.pop(key, ()):
            self._prefixes.forget(root)

    def _publish(self, row: int, num_tokens: int) -> None:
        if num_tokens > 0 and not self._is_doomed(row):
            self._prefixes.publish(row, num_tokens, self._clock.now_s())

    def _is_doomed(self, row: int) -> bool:
        adapter_id = self._state.request(row).adapter_id
        return adapter_id != BASE_ID and self._residency.is_doomed(adapter_id)
