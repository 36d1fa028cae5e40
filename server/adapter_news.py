"""News of adapters: what the link has brought, what could not be brought, and who has gone.

Keeps the runner's slots and the host tier in step with what residency holds, and ends the
requests of an adapter that will not come. Decides neither loads nor evictions (the plan does).
Called by engine.py, at the start of a step and whenever an adapter may have departed.
"""

from __future__ import annotations

import logging

from ..adapters.key import AdapterKey
from .engine_parts import EngineParts
from .errors import InternalError
from .lives import Lives
from .memory.residency import Arrived, Broken
from .outbox import Outbox
from .seam import Released
from .stats import Counters

_log = logging.getLogger(__name__)


class AdapterNews:
    def __init__(
        self, parts: EngineParts, *, lives: Lives, counters: Counters, outbox: Outbox
    ) -> None:
        self._state, self._residency, self._link = parts.state, parts.residency, parts.link
        self._runner, self._host_tier = parts.runner, parts.host_tier
        self._lives, self._counters, self._outbox = lives, counters, outbox

    def take_in(self, now_s: float) -> None:
        """What the link has brought since the last step."""
        news = self._residency.drain(self._link.poll(), now_s)
        self.detach_departed()
        for item in news:
            match item:
                case Arrived():
                    self._attach(item, now_s)
                case Broken(adapter_id=adapter_id, error=error):
                    self._give_up(adapter_id, error)

    def forget(self, key: AdapterKey) -> None:
        """Deleted or replaced: it goes with its last user."""
        self._residency.doom(key)
        self.detach_departed()

    def detach_departed(self) -> None:
        for gone in self._residency.take_departed():
            if gone.slot >= 0:
                self._runner.detach(gone.slot)
            if gone.released:
                self._host_tier.forget(gone.key)
                self._outbox.put(Released(gone.key))

    def _attach(self, arrived: Arrived, now_s: float) -> None:
        adapter_id = arrived.adapter_id
        try:
            self._runner.attach(arrived.slot, arrived.layout, arrived.pages)
        except ValueError as error:  # a bug, and still one adapter's alone
            self._residency.expel(adapter_id)
            self._give_up(adapter_id, InternalError(str(error)))
            return
        self._counters.adapter_loads += 1
        self._state.adapter_arrived(adapter_id, now_s)

    def _give_up(self, adapter_id: int, error: Exception) -> None:
        _log.warning("an adapter could not be loaded: %s", error)
        self._lives.end_those_of(adapter_id, error)
