"""The link: brings packed adapters from disk, through the host tier, into pages of the pool.

Owns the threads: readers (disk to host memory) and one for the wire (host memory to pool); layers
flow, so that the first is in the pool before the last is off the disk. Who is next stands in
load_queue.py, how bytes move in wire.py. Does not know which pages are free, nor what the adapters
are for. Started and polled by residency; nothing reads a page before its event, or the board, says
that it has landed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...adapters.errors import AdapterError, AdapterLoadFailed
from ...adapters.host_tier import HeldImage, Told
from ...adapters.key import AdapterCard, AdapterKey
from ..clock import Clock, MonotonicClock
from ..memory.link_records import (
    LayerLanded,
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from .cold_start.board import LandedBoard
from .load_queue import Load, LoadQueue, Read
from .wire import (
    DeviceWire,
    EmulatedWire,
    HostWire,
    TimedWait,
    Wire,
    check_image,
    image_of,
    misfit_of,
)

CLOSE_TIMEOUT_S = 4.0  # how long all threads together may take to end

_log = logging.getLogger(__name__)
_Job = TypeVar("_Job", Load, Read)


class ImageSource(Protocol):
    """The host tier, as the link needs it; called from several threads."""

    def touch(self, key: AdapterKey) -> bool: ...

    def hold(self, key: AdapterKey) -> HeldImage | None: ...

    def share(self, image: HeldImage) -> bool: ...

    def let_go(self, image: HeldImage) -> None: ...

    def read(self, card: AdapterCard, told: Told) -> HeldImage:
        """Raises AdapterLoadFailed, as the next one does; both wait for the disk."""
        ...

    def read_ahead(
        self, card: AdapterCard, spare: Collection[AdapterKey], told: Told
    ) -> HeldImage | None: ...


class PoolLink:
    """A `Link` over threads; `wake` is called from them whenever there is something to poll.

    `board`: who starts before a load has ended looks there; None: nobody does, and nothing is told
    `Opened`. `bytes_per_s`: emulate a link of this bandwidth, for a pool on a CPU; 0: as fast as it
    goes.
    """

    def __init__(
        self,
        source: ImageSource,
        pool_PE: Tensor,
        wake: Callable[[], None],
        *,
        board: LandedBoard | None = None,
        num_readers: int = 2,
        bytes_per_s: float = 0.0,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        clock: Clock | None = None,
        wait: TimedWait = threading.Condition.wait,
    ) -> None:
        self._source, self._pool_PE, self._wake = source, pool_PE, wake
        self._board = board
        self._clock, self._close_timeout_s = clock or MonotonicClock(), close_timeout_s
        # One lock, and whoever sleeps is woken for what concerns him alone: a thread that looks for
        # work and finds none has stopped the engine's all the same.
        self._lock = threading.RLock()
        self._to_read, self._to_cross = (threading.Condition(self._lock) for _ in range(2))
        self._queue = LoadQueue(max_hints=max(1, num_readers - 1))
        self._events: deque[LinkEvent] = deque()
        self._is_closed = False
        self._wire = self._make_wire(bytes_per_s, wait)
        self._wire_free_s = 0.0  # instant at which the last load was over
        works = [(self._cross_loads, "wire")]
        works += [(self._read_images, f"reader-{i}") for i in range(num_readers)]
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True) for work, name in works
        ]
        for thread in self._threads:
            thread.start()

    def _make_wire(self, bytes_per_s: float, wait: TimedWait) -> Wire:
        if bytes_per_s > 0.0:
            if self._pool_PE.is_cuda:
                raise ValueError(f"a link of {bytes_per_s} bytes/s is emulated on a CPU alone")
            _log.warning("the link is emulated: %.4g bytes/s", bytes_per_s)
            return EmulatedWire(
                self._pool_PE,
                bytes_per_s,
                by_layer=self._board is not None,
                clock=self._clock,
                changed=self._to_cross,
                wait=wait,
            )
        return DeviceWire(self._pool_PE) if self._pool_PE.is_cuda else HostWire(self._pool_PE)

    def start(self, order: LoadOrder) -> Opened | None:
        """Begin; never blocks. To be called by the thread that launches steps, on their stream:
        whatever was launched before may still read the pages.
        """
        if self._board is not None:
            self._board.begin(order.slot, order.load_id)
        self._wire.clear(order.pages)
        load = Load(order, self._clock.now_s())
        if self._pool_PE.is_cuda:
            load.freed = torch.cuda.Event()
            load.freed.record(torch.cuda.current_stream(self._pool_PE.device))
        with self._lock:
            # In one with the queue's: a read that ends in between is found here, or joined there.
            load.image = self._source.hold(order.card.key)
            if load.image is not None:
                load.num_read = load.num_layers
            elif (
                (read := self._queue.under_way(order.card.key))
                and read.image is not None
                # A read that has just failed is told to the queue after its image is gone.
                and self._source.share(read.image)
            ):
                load.image, load.num_read = read.image, read.num_read
            load.ready_s = load.read_end_s = load.ordered_s
            self._queue.add(load)
            opened = self._open(load)
            self._show_read(load)
            if load.num_read:
                self._to_cross.notify_all()
            if not load.is_read:
                self._to_read.notify_all()
        return opened

    def cancel(self, load_id: int) -> None:
        """Never blocks. One that crosses goes on to the end of its layer; on a GPU, to its end."""
        with self._lock:
            load = self._queue.cancel(load_id)
            self._wake_all()
        if load is not None:
            self._end(load, _given_up(load))

    def want(self, cards: Sequence[AdapterCard]) -> None:
        """Read ahead, as long as that costs no room that an earlier one of them has."""
        # The last first: of those that are here, whoever is needed last goes first.
        here = {card.key for card in reversed(cards) if self._source.touch(card.key)}
        with self._lock:
            self._queue.want(cards, here)
            self._to_read.notify_all()

    def poll(self) -> list[LinkEvent]:
        """Events since the last call, in their order; never blocks."""
        events: list[LinkEvent] = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def let_go(self, image: HeldImage) -> None:
        """Of an `Opened`, by whoever heard it."""
        self._source.let_go(image)
        if image.is_loose:
            with self._lock:
                self._to_read.notify_all()

    def close(self) -> None:
        """Give up what is under way, at the next layer, and end the threads.

        A thread that hangs in a read is left behind: it is a daemon, and should the read end
        after all, it finds the link closed; no page is touched.
        """
        with self._lock:
            self._is_closed = True
            loads = self._queue.clear()
            self._wake_all()
        for load in loads:
            self._end(load, _given_up(load))
        for thread in self._threads:
            thread.join(self._close_timeout_s / len(self._threads))
        for event in self.poll():
            if isinstance(event, Opened):
                self.let_go(event.image)
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        if hanging:
            _log.warning("%s: still busy with an adapter, left behind", ", ".join(hanging))

    # Disk to host memory

    def _read_images(self) -> None:
        _compute_alone()
        while (read := self._next(self._queue.next_read, self._to_read)) is not None:
            told = partial(self._read_on, read, self._clock.now_s())
            try:
                image = self._read(read, told)
            # The thread's last line of defence: every order gets an answer, whatever happens.
            except Exception as error:
                self._fail_all(read, error)
            else:
                self._hand_over(read, image, told)

    def _read(self, read: Read, told: Told) -> HeldImage | None:
        if read.spare is None:
            return self._source.read(read.card, told)
        return self._source.read_ahead(read.card, read.spare, told)

    def _read_on(self, read: Read, began_s: float, image: HeldImage, num_layers: int) -> None:
        """So many layers are in host memory; of 0 it is known where they will be."""
        now_s, opened = self._clock.now_s(), list[Opened]()
        with self._lock:
            loads = self._queue.advance(read, image, num_layers, now_s=now_s)
            for load in loads:
                if load.image is None:
                    self._source.share(image)
                    load.image = image
                    if (event := self._open(load)) is not None:
                        opened.append(event)
                self._show_read(load)
                if load.is_read:
                    load.read_end_s, load.disk_s = now_s, now_s - began_s
            self._events.extend(opened)  # before anything of it can land
            if loads:
                self._to_cross.notify_all()
        if opened:
            self._wake()

    def _fail_all(self, read: Read, error: Exception) -> None:
        """Of a read ahead it is nobody: should the adapter be ordered, that will tell."""
        with self._lock:
            loads = self._queue.fail_read(read, error)
            self._wake_all()
        for load in loads:
            self._end(load, LoadFailed(load.order.load_id, _as_adapter_error(load.order, error)))

    def _hand_over(self, read: Read, image: HeldImage | None, told: Told) -> None:
        if image is not None:
            told(image, len(image.layout.landed_pages))  # it was here already: nobody has heard yet
        with self._lock:
            loads = self._queue.take_read(read)
            if image is None:
                self._queue.put_back(loads)
                self._wake_all()
                return
            # What lies outside the tier is bounded by the number of readers.
            while image.is_loose and image.num_holders > 1 and not self._is_closed:
                self._to_read.wait()
        self._source.let_go(image)

    def _open(self, load: Load) -> Opened | None:
        """What the hearer gets, with a share of his own; None: no cells are known, nobody hears, or
        the image does not fit, which the load's end tells.
        """
        image = load.image
        if self._board is None or image is None:
            return None
        if misfit_of(load.order, image, self._pool_PE):
            return None
        self._source.share(image)
        return Opened(load.order.load_id, image)

    def _show_read(self, load: Load) -> None:
        if self._board is not None and load.num_read:
            self._board.read(load.order.slot, load.order.load_id, load.num_read)

    # Host memory to pool

    def _cross_loads(self) -> None:
        _compute_alone()
        while (load := self._next(self._queue.next_crossing, self._to_cross)) is not None:
            event = self._cross(load)
            if event is not None:
                self._end(load, event)

    def _cross(self, load: Load) -> Loaded | LoadFailed | None:
        """With what is in host memory of it; None: the rest still comes, and others may cross."""
        event, end_layer = None, load.num_read
        try:
            check_image(load.order, image_of(load), self._pool_PE)
            if not self._wire.carry(load, end_layer, partial(self._landed, load)):
                event = _given_up(load)
        # As above.
        except Exception as error:
            self._wire.settle()
            event = LoadFailed(load.order.load_id, _as_adapter_error(load.order, error))
        now_s = self._clock.now_s()
        load.wire_s += now_s - max(load.ready_s, self._wire_free_s)
        self._wire_free_s = now_s
        with self._lock:
            self._queue.crossed(load, end_layer)
            if event is None and end_layer == load.num_layers:
                event = _loaded(load, now_s)
            elif event is None and load.is_given_up:
                event = _given_up(load)
            if event is not None:
                self._queue.end(load)
        return event

    def _landed(self, load: Load, layer: int) -> None:
        if self._board is not None:
            self._board.land(load.order.slot, load.order.load_id, layer + 1)
        self._tell(LayerLanded(load.order.load_id, layer))

    def _end(self, load: Load, event: Loaded | LoadFailed) -> None:
        """No page of it is written any more."""
        if self._board is not None and isinstance(event, LoadFailed):
            self._board.void(load.order.slot, load.order.load_id)
        if load.image is not None:
            self.let_go(load.image)
        self._tell(event)

    def _next(self, take: Callable[[], _Job | None], come: threading.Condition) -> _Job | None:
        """Waits for one; None: the link is closed."""
        with self._lock:
            while not self._is_closed:
                job = take()
                if job is not None:
                    return job
                come.wait()
            return None

    def _wake_all(self) -> None:
        self._to_read.notify_all()
        self._to_cross.notify_all()

    def _tell(self, event: LinkEvent) -> None:
        if not self._is_closed:
            self._events.append(event)
            self._wake()


def _compute_alone() -> None:
    # OpenMP gives every thread that computes in parallel a team of its own, and with more
    # threads than cores all teams sleep between any two operations instead of waiting: the
    # step's then took 1.5 times as long. This setting is the calling thread's alone.
    torch.set_num_threads(1)


def _loaded(load: Load, now_s: float) -> Loaded:
    return Loaded(
        load.order.load_id,
        image_of(load).layout,
        seconds=now_s - load.ordered_s,
        read_s=load.read_end_s - load.ordered_s,
        disk_s=load.disk_s,
        wire_s=load.wire_s,
    )


def _given_up(load: Load) -> LoadFailed:
    """Its read has failed, or nobody needs it any more."""
    key, error = load.order.card.key, load.error
    if error is not None:
        return LoadFailed(load.order.load_id, _as_adapter_error(load.order, error))
    return LoadFailed(load.order.load_id, LoadCancelled(f"nobody needs {key} any more"))


def _as_adapter_error(order: LoadOrder, error: Exception) -> AdapterError:
    if isinstance(error, AdapterError):
        return error
    return AdapterLoadFailed(
        f"{order.card.key} could not be brought into the pool: {type(error).__name__}: {error}",
        name=order.card.key.name,
    )
