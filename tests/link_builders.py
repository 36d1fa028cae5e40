"""What tests of the link share: images, orders, a host tier of one function, a disk that is let on
by a test, and a way to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from lorry.adapters.host_tier import HeldImage, Told
from lorry.adapters.image import ImageLayout
from lorry.adapters.image_file import OpenImage, open_image
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import LinkEvent, Loaded, LoadFailed, LoadOrder, Opened

LANDED = (3, 3, 4, 5)  # pages there after each layer of the image below
PAGES = (0, 1, 2, 3, 4)  # of an image's load, in most tests
WITHIN_S = 20.0  # of a test that would hang


def make_image(
    num_pages: int = 5, value: float = 1.0, width: int = 64, *, is_loose: bool = False
) -> HeldImage:
    """Counting up from `value`; its last two pages lie before the others."""
    layout = ImageLayout(num_pages, 16, (), (*LANDED[:-1], num_pages), 0)
    pages = torch.arange(num_pages * width).view(num_pages, width) + value
    cells = tuple((idx + 2) % num_pages for idx in range(num_pages))
    memory = torch.empty_like(pages)
    memory[list(cells)] = pages
    return HeldImage(layout, memory, cells, is_loose)


def make_named_card(name: str = "a") -> AdapterCard:
    key = AdapterKey("default", name, 1, "hash")
    return AdapterCard(key, 0, 8, 5, 0, (), 0.0, 0.0, (), Path("image"))


def make_order(load_id: int, pages: tuple[int, ...], name: str = "a") -> LoadOrder:
    return LoadOrder(load_id, 0, 0, make_named_card(name), pages)


def names_of(events: list[LinkEvent]) -> list[tuple[int, str]]:
    """How each load has ended."""
    return [
        (event.load_id, type(event).__name__)
        for event in events
        if isinstance(event, Loaded | LoadFailed)
    ]


class Source:
    """A host tier that holds what is in `here`; `read` is one function, and keeps what it reads."""

    def __init__(self, read: Callable[[AdapterCard], HeldImage]) -> None:
        self._read = read
        self.here: dict[AdapterKey, HeldImage] = {}
        self.touched: list[str] = []
        self.ahead: list[tuple[str, frozenset[str]]] = []  # names read ahead, and what to spare
        self._lock = threading.Lock()

    def keep(self, name: str, image: HeldImage) -> None:
        image.num_holders = 0
        self.here[make_named_card(name).key] = image

    def touch(self, key: AdapterKey) -> bool:
        self.touched.append(key.name)
        return key in self.here

    def hold(self, key: AdapterKey) -> HeldImage | None:
        image = self.here.get(key)
        if image is not None:
            self.share(image)
        return image

    def share(self, image: HeldImage) -> bool:
        with self._lock:
            image.num_holders += 1
        return True

    def let_go(self, image: HeldImage) -> None:
        with self._lock:
            image.num_holders -= 1

    def read(self, card: AdapterCard, told: Told | None = None) -> HeldImage:
        image = self._read(card)
        image.num_holders = 1
        if not image.is_loose:
            self.here[card.key] = image
        return image

    def read_ahead(
        self, card: AdapterCard, spare: Collection[AdapterKey], told: Told | None = None
    ) -> HeldImage | None:
        self.ahead.append((card.key.name, frozenset(key.name for key in spare)))
        return self.read(card)


class Waiter:
    """Collects events; waits on the link's wake, never on time. `hear` gets the image of each that
    was told open.
    """

    def __init__(self, hear: Callable[[HeldImage], object] | None = None) -> None:
        self._woken, self._hear = threading.Semaphore(0), hear

    def wake(self) -> None:
        self._woken.release()

    def collect(self, link: PoolLink, num_loads: int) -> list[LinkEvent]:
        return self.until(link, lambda events: len(names_of(events)) >= num_loads)

    def until(
        self, link: PoolLink, is_enough: Callable[[list[LinkEvent]], bool]
    ) -> list[LinkEvent]:
        events: list[LinkEvent] = []
        while not is_enough(events):
            assert self._woken.acquire(timeout=WITHIN_S), f"nothing more after {events}"
            for event in link.poll():
                events.append(event)
                if self._hear is not None and isinstance(event, Opened):
                    self._hear(event.image)
        return events


class Gate:
    """Reads stop at it, each until it is let through by name."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reading: list[str] = []  # everyone who ever came, in order
        self._open: set[str] = set()

    def __call__(self, card: AdapterCard) -> HeldImage:
        name = card.key.name
        with self._changed:
            self.reading.append(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._open, WITHIN_S)
        return make_image(value=1000.0 * float(name) if name.isdigit() else 1.0)

    def let(self, *names: str) -> None:
        with self._changed:
            self._open.update(names)
            self._changed.notify_all()

    def await_reads(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.reading) >= count, WITHIN_S)


class SlowDisk:
    """Opens files whose pages come as far as a test lets them; headers come at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed_bytes: dict[str, int] = {}  # of the pages, by file name
        self._waiting: set[str] = set()  # whose reader has all that it may have
        self.num_opened = 0

    def let(self, name: str, num_bytes: int = 1 << 40) -> None:
        """All bytes before this one may come."""
        with self._changed:
            self._allowed_bytes[name] = num_bytes
            self._waiting.discard(name)
            self._changed.notify_all()

    def await_reader(self, name: str) -> None:
        """Until somebody waits for more of it."""
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._waiting, WITHIN_S)

    @contextmanager
    def open(self, path: Path) -> Generator[OpenImage]:
        with open_image(path) as image:
            self.num_opened += 1
            file: Any = _SlowFile(self, path.name, image.file)
            yield replace(image, file=file)

    def await_bytes(self, name: str, start: int) -> int:
        """How many may come from `start` on, at least one."""
        with self._changed:
            while self._allowed_bytes.get(name, 0) <= start:
                self._waiting.add(name)
                self._changed.notify_all()
                assert self._changed.wait(WITHIN_S), f"nobody lets {name} go on from {start}"
            return self._allowed_bytes[name] - start


class _SlowFile:
    def __init__(self, disk: SlowDisk, name: str, file: FileIO) -> None:
        self._disk, self._name, self._file, self._done = disk, name, file, 0

    def readinto(self, memory: memoryview) -> int:
        count = self._file.readinto(memory[: self._disk.await_bytes(self._name, self._done)])
        self._done += count or 0
        return count or 0


class ManualTime:
    """A clock, and the wait of the emulated link, that pass when a test says so."""

    def __init__(self) -> None:
        self._now_s = 100.0
        self._state = threading.Condition()
        self._changed: threading.Condition | None = None  # the link's, once it has waited
        self._sleeps = False  # since the clock was last moved
        self._flows = False

    def now_s(self) -> float:
        return self._now_s

    def wait(self, changed: threading.Condition, timeout_s: float) -> None:
        with self._state:
            if self._flows:
                self._now_s += timeout_s
                return
            self._changed, self._sleeps = changed, True
            self._state.notify_all()
        assert changed.wait(WITHIN_S), f"nobody moves the clock by {timeout_s} s"
        with self._state:
            self._sleeps = False

    def await_sleeper(self) -> None:
        """Until somebody waits for an instant that has not come."""
        with self._state:
            assert self._state.wait_for(lambda: self._sleeps, WITHIN_S)

    def flow(self) -> None:
        """From now on whoever waits has waited."""
        with self._state:
            self._flows = True
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        with self._state:
            self._now_s += seconds
            self._sleeps = False
            changed = self._changed
        if changed is not None:
            with changed:
                changed.notify_all()
