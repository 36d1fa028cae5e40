"""The link: images arrive whole, in order, in their own pages, and every order is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.image import ImageLayout
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import LayerLanded, LinkEvent, Loaded, LoadFailed, LoadOrder
from lorry.tests.fakes import FakeClock


@dataclass
class Image:
    layout: ImageLayout
    pages: torch.Tensor


class Source:
    """A host tier of one function."""

    def __init__(self, fetch: Callable[[AdapterCard], Image]) -> None:
        self.fetch = fetch


def make_image(num_pages: int = 5, value: float = 1.0, width: int = 64) -> Image:
    layout = ImageLayout(num_pages, 16, (), (3, 3, 4, num_pages), 0)
    return Image(layout, torch.arange(num_pages * width).view(num_pages, width) + value)


def make_order(load_id: int, pages: tuple[int, ...], name: str = "a") -> LoadOrder:
    key = AdapterKey("default", name, 1, "hash")
    card = AdapterCard(key, 0, 8, len(pages), 0, (), 0.0, 0.0, (), Path("image"))
    return LoadOrder(load_id, 0, 0, card, pages)


class Waiter:
    """Collects events; waits on the link's wake, never on time."""

    def __init__(self) -> None:
        self._woken = threading.Semaphore(0)

    def wake(self) -> None:
        self._woken.release()

    def collect(self, link: PoolLink, num_loads: int) -> list[LinkEvent]:
        events: list[LinkEvent] = []
        while sum(isinstance(event, Loaded | LoadFailed) for event in events) < num_loads:
            assert self._woken.acquire(timeout=20), f"nothing more after {events}"
            events += link.poll()
        return events


def test_layers_land_in_order_and_only_in_their_pages() -> None:
    """A page of somebody else must stay as it is, whatever the order of the numbers."""
    image, waiter, pool_PE = make_image(), Waiter(), torch.full((12, 64), torch.nan)
    clock = FakeClock()

    def fetch(card: AdapterCard) -> Image:
        clock.advance(0.25)
        return image

    link = PoolLink(Source(fetch), pool_PE, waiter.wake, clock=clock)
    pages = (7, 8, 2, 3, 11)
    link.start(make_order(1, pages))
    events = waiter.collect(link, 1)
    link.close()
    assert events == [
        LayerLanded(1, 1),
        LayerLanded(1, 2),
        LayerLanded(1, 3),
        Loaded(1, image.layout, seconds=0.25),  # from the order on, as the cost model learns it
    ]
    assert torch.equal(pool_PE[list(pages)], image.pages)
    assert pool_PE[[0, 1, 4, 5, 6, 9, 10]].isnan().all()


def test_a_layer_is_announced_when_its_pages_are_there() -> None:
    """An event that runs ahead of its bytes would let a prefill read NaN."""
    image, pool_PE = make_image(), torch.full((5, 64), torch.nan)
    landed: list[int] = []
    looked = threading.Semaphore(0)

    def look() -> None:
        landed.append(int((~pool_PE.isnan()).all(dim=1).sum()))
        looked.release()

    link = PoolLink(Source(lambda card: image), pool_PE, look, num_threads=1)
    link.start(make_order(1, (0, 1, 2, 3, 4)))
    assert all(looked.acquire(timeout=20) for _ in range(4))
    link.close()
    assert landed == [3, 4, 5, 5]


@pytest.mark.parametrize(
    ("fetch", "word"),
    [
        (lambda card: make_image(num_pages=4), "make \\(5, 64\\)"),
        (lambda card: make_image(width=32), "has shape"),
        (lambda card: Image(make_image().layout, make_image().pages.double()), "float64"),
        (lambda card: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["pages", "width", "dtype", "bug"],
)
def test_a_bad_image_fails_its_own_load(fetch: Callable[[AdapterCard], Image], word: str) -> None:
    """It must touch no page, name its adapter, and leave the link fit for the next."""
    waiter, pool_PE = Waiter(), torch.full((6, 64), torch.nan)
    good = make_image()
    link = PoolLink(
        Source(lambda card: good if card.key.name == "good" else fetch(card)),
        pool_PE,
        waiter.wake,
        clock=FakeClock(),
    )
    link.start(make_order(1, (0, 1, 2, 3, 4)))
    (event,) = waiter.collect(link, 1)
    assert isinstance(event, LoadFailed)
    with pytest.raises(AdapterLoadFailed, match=word):
        raise event.error
    assert pool_PE.isnan().all()
    link.start(make_order(2, (0, 1, 2, 3, 4), name="good"))
    assert waiter.collect(link, 1)[-1] == Loaded(2, good.layout)
    link.close()


def test_many_loads_at_once_all_arrive() -> None:
    """Loads of several threads share the pool; each must end up with its own numbers."""
    waiter, pool_PE = Waiter(), torch.full((100, 64), torch.nan)
    link = PoolLink(
        Source(lambda card: make_image(value=float(card.key.name) * 1000)), pool_PE, waiter.wake
    )
    for i in range(20):
        link.start(make_order(i, tuple(range(5 * i, 5 * i + 5)), name=str(i)))
    events = waiter.collect(link, 20)
    link.close()
    assert {event.load_id for event in events if isinstance(event, Loaded)} == set(range(20))
    for i in range(20):
        assert torch.equal(pool_PE[5 * i : 5 * i + 5], make_image(value=i * 1000.0).pages)


def test_close_gives_up_what_is_under_way() -> None:
    """A stop must not wait for a long queue of loads."""
    started, go_on = threading.Event(), threading.Event()

    def slow(card: AdapterCard) -> Image:
        started.set()
        assert go_on.wait(20)
        return make_image()

    pool_PE = torch.full((5, 64), torch.nan)
    link = PoolLink(Source(slow), pool_PE, lambda: None, num_threads=1)
    for load_id in range(3):
        link.start(make_order(load_id, (0, 1, 2, 3, 4)))
    assert started.wait(20)
    closer = threading.Thread(target=link.close)
    closer.start()
    assert link._closing.wait(20)
    go_on.set()
    closer.join(20)
    assert not closer.is_alive()
    assert link.poll() == []
    assert pool_PE.isnan().all()


def test_a_read_that_hangs_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A dead disk would keep the engine from ending for ever; and once it answers after all,
    its image must not be written over pages of whoever came later."""
    started, go_on = threading.Event(), threading.Event()

    def hang(card: AdapterCard) -> Image:
        started.set()
        assert go_on.wait(20)
        return make_image()

    pool_PE = torch.full((5, 64), torch.nan)
    link = PoolLink(Source(hang), pool_PE, lambda: None, num_threads=2, close_timeout_s=0.05)
    link.start(make_order(1, (0, 1, 2, 3, 4)))
    assert started.wait(20)
    closer = threading.Thread(target=link.close, daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    assert "left behind" in caplog.text
    go_on.set()
    for thread in link._threads:
        thread.join(20)
    assert pool_PE.isnan().all()
    assert link.poll() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_load_waits_for_the_step_that_still_reads_its_pages() -> None:
    """Pages are evicted while a step is under way on the device; bytes that come at once would
    change what that step reads, and what comes after must see them whole."""
    image, waiter = make_image(num_pages=5, width=1 << 16), Waiter()
    pool_PE = torch.full((6, 1 << 16), -1, dtype=image.pages.dtype, device="cuda")
    link = PoolLink(Source(lambda card: image), pool_PE, waiter.wake)
    torch.cuda._sleep(400_000_000)  # cycles: some 0.2 s of a step
    seen_PE = pool_PE.clone()
    link.start(make_order(1, (1, 2, 3, 4, 5)))
    waiter.collect(link, 1)
    link.close()
    assert torch.equal(pool_PE[1:].cpu(), image.pages)
    assert bool((seen_PE == -1).all())
