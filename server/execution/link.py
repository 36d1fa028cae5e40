"""The link: brings packed adapters from the host tier into pages of the pool.

Owns the loader threads and the order of copies: layer by layer, neighbouring pages as one
copy. Does not know who waits for an adapter, nor which pages are free. Started and polled by
residency; nothing reads a page before its event says that it has landed. Images lie in pageable
host memory, so on a GPU a copy holds up its loader thread (never the step) until it is done.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...adapters.errors import AdapterError, AdapterLoadFailed
from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard
from ..clock import Clock, MonotonicClock
from ..memory.link_records import LayerLanded, LinkEvent, Loaded, LoadFailed, LoadOrder

CLOSE_TIMEOUT_S = 4.0  # how long all loader threads together may take to end

_log = logging.getLogger(__name__)


class PackedAdapter(Protocol):
    """What the host tier hands out."""

    @property
    def layout(self) -> ImageLayout: ...

    @property
    def pages(self) -> Tensor:
        """[num_pages, E] in the pool's dtype, on the host."""
        ...


class ImageSource(Protocol):
    """The host tier, as the link needs it; called from several threads."""

    def fetch(self, card: AdapterCard) -> PackedAdapter:
        """Raises AdapterLoadFailed."""
        ...


class _Task(NamedTuple):
    order: LoadOrder
    ordered_s: float  # instant
    freed: torch.cuda.Event | None  # GPU: the point of the stream where its pages were let go


class PoolLink:
    """A `Link` over threads; `wake` is called from them whenever there is something to poll."""

    def __init__(
        self,
        source: ImageSource,
        pool_PE: Tensor,
        wake: Callable[[], None],
        *,
        num_threads: int = 2,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        self._source = source
        self._pool_PE = pool_PE
        self._wake = wake
        self._clock = clock or MonotonicClock()
        self._close_timeout_s = close_timeout_s
        self._orders: SimpleQueue[_Task | None] = SimpleQueue()
        self._events: deque[LinkEvent] = deque()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"loader-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, order: LoadOrder) -> None:
        """Begin; never blocks. To be called by the thread that launches steps, on their stream:
        whatever was launched before may still read the pages.
        """
        freed = None
        if self._pool_PE.is_cuda:
            freed = torch.cuda.Event()
            freed.record(torch.cuda.current_stream(self._pool_PE.device))
        self._orders.put(_Task(order, self._clock.now_s(), freed))

    def poll(self) -> list[LinkEvent]:
        """Events since the last call, in their order; never blocks."""
        events: list[LinkEvent] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def close(self) -> None:
        """Give up what is under way, at the next page run, and end the threads.

        A thread that hangs in a read is left behind: it is a daemon, and should the read end
        after all, it finds the link closed and touches no page.
        """
        self._closing.set()
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join(self._close_timeout_s / len(self._threads))
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        if hanging:
            _log.warning("%s: still reading an adapter, left behind", ", ".join(hanging))

    def _work(self) -> None:
        # OpenMP gives every thread that computes in parallel a team of its own, and with more
        # threads than cores all teams sleep between any two operations instead of waiting: the
        # step's then took 1.5 times as long. This setting is the calling thread's alone.
        torch.set_num_threads(1)
        stream = torch.cuda.Stream(self._pool_PE.device) if self._pool_PE.is_cuda else None
        while not self._closing.is_set():
            task = self._orders.get()
            if task is None:
                return
            try:
                self._load(task, stream)
            # The thread's last line of defence: every order gets an answer, whatever happens.
            except Exception as error:
                _finish_copies(stream)
                self._tell(LoadFailed(task.order.load_id, _as_adapter_error(task.order, error)))

    def _load(self, task: _Task, stream: torch.cuda.Stream | None) -> None:
        order = task.order
        image = self._source.fetch(order.card)
        self._check(order, image)
        if stream is not None and task.freed is not None:
            stream.wait_event(task.freed)
        done = 0
        for layer, landed_pages in _layer_groups(image.layout):
            with torch.cuda.stream(stream):
                self._copy(image.pages, order.pages, done, landed_pages)
            if self._closing.is_set():
                _finish_copies(stream)
                return
            if stream is not None:
                # The thread waits, so that "landed" means landed for every stream.
                stream.synchronize()
            done = landed_pages
            self._tell(LayerLanded(order.load_id, layer))
        seconds = self._clock.now_s() - task.ordered_s
        self._tell(Loaded(order.load_id, image.layout, seconds))

    def _copy(self, source_PE: Tensor, pages: Sequence[int], first: int, end: int) -> None:
        for start, stop in _page_runs(pages, first, end):
            if self._closing.is_set():
                return
            home = self._pool_PE[pages[start] : pages[start] + stop - start]
            home.copy_(source_PE[start:stop], non_blocking=True)

    def _check(self, order: LoadOrder, image: PackedAdapter) -> None:
        """An image of another shape would be written over somebody else's pages."""
        shape = (len(order.pages), self._pool_PE.shape[1])
        if tuple(image.pages.shape) != shape or image.layout.num_pages != shape[0]:
            raise AdapterLoadFailed(
                f"the image of {order.card.key} has shape {tuple(image.pages.shape)}; "
                f"its {len(order.pages)} pages make {shape}",
                name=order.card.key.name,
            )
        if image.pages.dtype != self._pool_PE.dtype:
            raise AdapterLoadFailed(
                f"the image of {order.card.key} is {image.pages.dtype}, the pool "
                f"{self._pool_PE.dtype}",
                name=order.card.key.name,
            )

    def _tell(self, event: LinkEvent) -> None:
        self._events.append(event)
        self._wake()


def _finish_copies(stream: torch.cuda.Stream | None) -> None:
    """Wait for the copies of a load that ends before its time: its pages go to others next."""
    if stream is None:
        return
    try:
        stream.synchronize()
    # A device that has failed copies nothing more, and the answer must go out all the same.
    except RuntimeError as error:
        _log.warning("the device failed in a load: %s", error)


def _layer_groups(layout: ImageLayout) -> Iterator[tuple[int, int]]:
    """(last layer, landed pages) of each group of layers that lands together."""
    landed = layout.landed_pages
    for layer, count in enumerate(landed):
        if layer + 1 == len(landed) or landed[layer + 1] != count:
            yield layer, count


def _page_runs(pages: Sequence[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of the image, within [first, end), whose pool pages adjoin."""
    start = first
    for idx in range(first + 1, end + 1):
        if idx == end or pages[idx] != pages[idx - 1] + 1:
            yield start, idx
            start = idx


def _as_adapter_error(order: LoadOrder, error: Exception) -> AdapterError:
    if isinstance(error, AdapterError):
        return error
    return AdapterLoadFailed(
        f"{order.card.key} could not be brought into the pool: {type(error).__name__}: {error}",
        name=order.card.key.name,
    )
