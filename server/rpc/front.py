"""What all handlers share: the two clients, the registry, the tokenizer, the state of the server.

Owns whether the server takes work (starting, serving, draining) and the count of open calls.
Built by the supervisor; the handlers read it. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ...adapters.key import AdapterKey
from ..clock import Clock
from ..config import ServerConfig
from ..errors import Draining, EngineUnavailable, Overloaded
from ..seam import EngineInfo
from ..store_messages import StoreReady
from .access import Access
from .engine_client import EngineClient
from .link import DRAINING
from .registry import AdapterRegistry
from .store_client import StoreClient
from .text import Text


class Front:
    """Made on the event loop; `on_change` is called whenever `serving` may have changed."""

    def __init__(
        self, config: ServerConfig, clock: Clock, *, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.config = config
        self.clock = clock
        self.on_change = on_change
        self.access = Access(config.service.tokens, clock)
        self.engine = EngineClient(
            on_ready=self._engine_ready, on_released=self._released, on_lost=self._engine_lost
        )
        self.store = StoreClient(on_ready=self._store_ready, on_lost=self._store_lost)
        self.registry = AdapterRegistry(self.store, forget=self.engine.forget, pin=self.engine.pin)
        self.text: Text | None = None  # None: the tokenizer is being read
        self.engine_restarts = 0
        self.engine_up_s = math.nan  # when the engine was last ready
        self.engine_quiet = False  # up, but it has answered nothing for long (watchdog.py)
        self.draining = False
        # Set when the grace is over: what is still open is answered now.
        self.closing = asyncio.Event()
        self._started_s = clock.now_s()
        self._layout: object = None  # what decides whether and how an adapter is packed
        self._num_open = 0
        self.num_generating = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def uptime_s(self) -> float:
        return self.clock.now_s() - self._started_s

    @property
    def serving(self) -> bool:
        """Whether a Generate sent now would be taken."""
        up = self.engine.info is not None and not self.engine_quiet
        return up and self.text is not None and not self.draining

    @property
    def storing(self) -> bool:
        """Whether an Upload sent now would be taken."""
        return self.serving and self.store.ready

    def require_text(self) -> Text:
        """Raises:
        EngineUnavailable: it is still being read.
        """
        if self.text is None:
            raise EngineUnavailable("the tokenizer is still being read", retry_after_s=1.0)
        return self.text

    @contextmanager
    def open_call(self) -> Generator[None]:
        """Counts a call that a drain waits for.

        Raises:
            Draining: the server is stopping.
        """
        if self.draining:
            raise Draining(DRAINING)
        self._num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._idle.set()

    @contextmanager
    def open_generation(self) -> Generator[None]:
        """As `open_call`, and bounded: an answer that is made and not read yet has no place in the
        engine any more, but one here.

        Raises:
            Draining: the server is stopping.
            Overloaded: as many calls are open as the engine could have requests.
        """
        scheduling = self.config.scheduling
        limit = scheduling.max_running + scheduling.max_waiting
        if self.num_generating >= limit:
            raise Overloaded(
                f"{self.num_generating} calls are open; at most {limit} (--max-running and "
                "--max-waiting together)",
                field="calls",
                retry_after_s=1.0,
            )
        with self.open_call():
            self.num_generating += 1
            try:
                yield
            finally:
                self.num_generating -= 1

    async def drain(self, grace_s: float) -> bool:
        """Takes no new calls; whether the open ones ended within the grace."""
        self.draining = True
        self.on_change()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def answer_rest(self) -> None:
        """Every call that is still open ends with Draining, soon."""
        self.closing.set()
        self.engine.reject_all(
            Draining("the server is stopping and the grace is over; ask another")
        )

    async def close_rest(self, patience_s: float) -> None:
        """Answers what is open and lets the answers reach their clients."""
        self.answer_rest()
        try:
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        except TimeoutError:
            pass  # a client that reads nothing: its stream is cut by the server's stop

    def set_text(self, text: Text) -> None:
        self.text = text
        self.on_change()

    def set_quiet(self, quiet: bool) -> None:
        if quiet != self.engine_quiet:
            self.engine_quiet = quiet
            self.on_change()

    def _engine_ready(self, info: EngineInfo) -> None:
        self.engine_up_s = self.clock.now_s()
        self.engine_quiet = False
        layout = (info.image_spec, info.num_pages, info.fingerprint)
        if layout != self._layout:
            # Cards name images of the layout before, which are gone once the store hears of it.
            self.registry.drop_cards()
            self._layout = layout
        self._configure_store(info)
        if self.store.ready:
            self.registry.renew_pins()
        self.on_change()

    def _store_ready(self, ready: StoreReady) -> None:
        self.registry.store_ready(ready.num_adapters)
        if self.engine.info is not None:
            self._configure_store(self.engine.info)
            self.registry.settle()
            self.registry.renew_pins()
        self.on_change()

    def _configure_store(self, info: EngineInfo) -> None:
        # One page is left for the first block of a request's KV.
        self.store.configure(info.image_spec, info.num_pages - 1, info.fingerprint)

    def _released(self, key: AdapterKey) -> None:
        self.registry.released(key)

    def _engine_lost(self) -> None:
        self.registry.engine_lost()
        self.on_change()

    def _store_lost(self) -> None:
        self.registry.store_lost()
        self.on_change()
