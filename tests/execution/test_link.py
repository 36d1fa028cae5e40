"""The link: images arrive whole, in order, in their own pages, and every order is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage, HostTier, Told
from lorry.adapters.image_file import write_image
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import (
    LayerLanded,
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from lorry.tests.fakes import FakeClock, make_card
from lorry.tests.link_builders import (
    PAGES,
    WITHIN_S,
    Gate,
    Source,
    Waiter,
    make_image,
    make_named_card,
    make_order,
    names_of,
)


def test_layers_land_in_order_and_only_in_their_pages() -> None:
    """A page of somebody else must stay as it is, whatever the order of the numbers."""
    image, waiter, pool_PE = make_image(), Waiter(), torch.full((12, 64), torch.nan)
    clock = FakeClock()

    def read(card: AdapterCard) -> HeldImage:
        clock.advance(0.25)
        return image

    link = PoolLink(source := Source(read), pool_PE, waiter.wake, clock=clock)
    pages = (7, 8, 2, 3, 11)
    landed = [LayerLanded(1, layer) for layer in (1, 2, 3)]
    link.start(make_order(1, pages))
    # Times as the cost model learns them: from the order on, and what of it was the disk's.
    loaded = Loaded(1, image.layout, seconds=0.25, read_s=0.25, disk_s=0.25)
    assert waiter.collect(link, 1) == [*landed, loaded]
    assert torch.equal(pool_PE[list(pages)], image.pages)
    assert pool_PE[[0, 1, 4, 5, 6, 9, 10]].isnan().all()
    link.start(make_order(2, (0, 1, 4, 5, 6)))
    assert waiter.collect(link, 1)[-1] == Loaded(2, image.layout)
    link.close()
    assert image.num_holders == 0 and source.here


def test_a_layer_is_announced_when_its_pages_are_there() -> None:
    """An announcement that runs ahead of its bytes would let a prefill read NaN."""
    image, pool_PE, waiter = make_image(), torch.full((5, 64), torch.nan), Waiter()
    landed: list[int] = []

    class Looking(LandedBoard):
        def land(self, slot: int, load_id: int, num_layers: int) -> None:
            landed.append(int((~pool_PE.isnan()).all(dim=1).sum()))
            super().land(slot, load_id, num_layers)

    link = PoolLink(Source(lambda card: image), pool_PE, waiter.wake, board=Looking())
    link.start(make_order(1, PAGES))
    waiter.collect(link, 1)
    link.close()
    assert landed == [3, 4, 5]


def narrow() -> HeldImage:
    image = make_image()
    return HeldImage(image.layout, image.memory.double(), image.cells, is_loose=False)


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (lambda card: make_image(num_pages=4), "make \\(5, 64\\)"),
        (lambda card: make_image(width=32), "has shape"),
        (lambda card: narrow(), "float64"),
        (lambda card: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["pages", "width", "dtype", "bug"],
)
def test_a_bad_image_fails_its_own_load(
    read: Callable[[AdapterCard], HeldImage], word: str
) -> None:
    """It must touch no page, name its adapter, and leave the link fit for the next."""
    waiter, pool_PE = Waiter(), torch.full((6, 64), torch.nan)
    good = make_image()
    link = PoolLink(
        source := Source(lambda card: good if card.key.name == "good" else read(card)),
        pool_PE,
        waiter.wake,
        clock=FakeClock(),
    )
    link.start(make_order(1, PAGES))
    (event,) = waiter.collect(link, 1)
    assert isinstance(event, LoadFailed)
    with pytest.raises(AdapterLoadFailed, match=word):
        raise event.error
    assert pool_PE.isnan().all()
    link.start(make_order(2, PAGES, name="good"))
    assert waiter.collect(link, 1)[-1] == Loaded(2, good.layout)
    link.close()
    assert all(image.num_holders == 0 for image in source.here.values())


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


def test_what_is_in_host_memory_crosses_past_who_waits_for_the_disk() -> None:
    """A slow disk would stand before adapters that need none."""
    gate, waiter = Gate(), Waiter()
    link = PoolLink(source := Source(gate), torch.full((10, 64), torch.nan), waiter.wake)
    source.keep("warm", make_image())
    link.start(make_order(1, PAGES, name="cold"))
    gate.await_reads(1)
    link.start(make_order(2, (5, 6, 7, 8, 9), name="warm"))
    assert names_of(waiter.collect(link, 1)) == [(2, "Loaded")]
    gate.let("cold")
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    link.close()


def test_one_adapter_is_read_once_for_all_who_wait() -> None:
    """A load, the one that was cancelled before it, and a hint would each read the same file."""
    gate, waiter = Gate(), Waiter()
    pool_PE = torch.full((15, 64), torch.nan)
    link = PoolLink(source := Source(gate), pool_PE, waiter.wake, num_readers=3)
    link.want([make_named_card("a")])
    gate.await_reads(1)
    link.start(make_order(1, PAGES))
    link.start(make_order(2, (5, 6, 7, 8, 9)))
    link.start(make_order(3, (10, 11, 12, 13, 14)))
    link.cancel(2)
    assert names_of(waiter.collect(link, 1)) == [(2, "LoadFailed")]
    gate.let("a")
    assert names_of(waiter.collect(link, 2)) == [(1, "Loaded"), (3, "Loaded")]
    link.close()
    assert gate.reading == ["a"] and pool_PE[5:10].isnan().all()
    assert torch.equal(pool_PE[:5], pool_PE[10:]) and not pool_PE[:5].isnan().any()
    assert source.here[make_named_card("a").key].num_holders == 0


def test_what_is_wanted_next_is_read_ahead_in_order() -> None:
    """A disk would idle until its adapter's request is at the head of the line."""
    gate, waiter = Gate(), Waiter()
    link = PoolLink(source := Source(gate), torch.full((10, 64), torch.nan), waiter.wake)
    source.keep("here", make_image())
    cards = [make_named_card(name) for name in ("x", "here", "y", "z")]
    link.want(cards)
    assert source.touched == ["z", "y", "here", "x"]  # the first is the last to go
    gate.await_reads(1)
    link.start(make_order(1, PAGES, name="urgent"))  # by the reader that hints leave free
    gate.await_reads(2)
    link.want(cards[2:])
    gate.let("x", "urgent", "y", "z")
    gate.await_reads(4)
    assert gate.reading == ["x", "urgent", "y", "z"]
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    link.start(make_order(2, PAGES, name="x"))
    (event,) = [event for event in waiter.collect(link, 1) if isinstance(event, Loaded)]
    assert event.read_s == 0.0
    link.close()
    assert [name for name, _ in source.ahead] == ["x", "y", "z"]
    assert source.ahead[2][1] == {"y"}


def test_a_hint_that_fails_is_silent_and_one_without_room_is_read_when_ordered() -> None:
    """A guess would end requests nobody has sent, or leave an order waiting for ever."""
    waiter, fails, asked, go = Waiter(), threading.Event(), threading.Event(), threading.Event()

    def read(card: AdapterCard) -> HeldImage:
        if card.key.name == "lost":
            fails.set()
            raise AdapterLoadFailed("lost")
        return make_image()

    class FullSource(Source):
        def read_ahead(
            self, card: AdapterCard, spare: Collection[AdapterKey], told: Told | None = None
        ) -> HeldImage | None:
            if card.key.name == "lost":
                return super().read_ahead(card, spare)
            asked.set()
            assert go.wait(WITHIN_S)
            return None

    link = PoolLink(FullSource(read), torch.full((10, 64), torch.nan), waiter.wake)
    link.want([make_named_card("lost")])
    assert fails.wait(WITHIN_S)
    link.want([make_named_card("a")])
    assert asked.wait(WITHIN_S)
    link.start(make_order(1, PAGES))  # joins the hint's read
    go.set()
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    link.start(make_order(2, PAGES, name="lost"))
    assert names_of(waiter.collect(link, 1)) == [(2, "LoadFailed")]
    link.close()


def test_a_cancel_after_the_end_is_nobody_s_business() -> None:
    """A load would end twice, and its second end hit whoever has the number next."""
    waiter, link_image = Waiter(), make_image()
    link = PoolLink(Source(lambda card: link_image), torch.zeros(5, 64), waiter.wake)
    link.start(make_order(1, PAGES))
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    link.cancel(1)
    link.close()
    assert link.poll() == []


def test_close_gives_up_what_is_under_way() -> None:
    """A stop must not wait for a long queue of loads."""
    gate, pool_PE = Gate(), torch.full((5, 64), torch.nan)
    link = PoolLink(source := Source(gate), pool_PE, lambda: None, num_readers=1)
    for load_id in range(3):
        link.start(make_order(load_id, PAGES))
    gate.await_reads(1)
    closer = threading.Thread(target=link.close)
    closer.start()
    with link._lock:
        assert link._to_read.wait_for(lambda: link._is_closed, WITHIN_S)
    gate.let("a")
    closer.join(WITHIN_S)
    assert not closer.is_alive()
    assert link.poll() == []
    assert pool_PE.isnan().all() and source.here[make_named_card().key].num_holders == 0


def test_a_read_that_hangs_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A dead disk would keep the engine from ending for ever; and once it answers after all,
    its image must not be written over pages of whoever came later."""
    gate, pool_PE = Gate(), torch.full((5, 64), torch.nan)
    link = PoolLink(Source(gate), pool_PE, lambda: None, close_timeout_s=0.05)
    link.start(make_order(1, PAGES))
    gate.await_reads(1)
    closer = threading.Thread(target=link.close, daemon=True)
    closer.start()
    closer.join(WITHIN_S)
    assert not closer.is_alive()
    assert "left behind" in caplog.text
    gate.let("a")
    for thread in link._threads:
        thread.join(WITHIN_S)
    assert pool_PE.isnan().all()
    assert link.poll() == []


def store_cards(folder: Path) -> list[AdapterCard]:
    """Eight; the image of the last is missing."""
    for index in range(8):
        image = make_image(value=10_000.0 * index)
        write_image(folder / str(index), image.layout, image.pages)
    paths = [folder / ("lost" if index == 7 else str(index)) for index in range(8)]
    return [make_card(str(index), num_pages=5, image_path=path) for index, path in enumerate(paths)]


def check_opened(events: list[LinkEvent], opened: set[int], *, is_told: bool) -> None:
    """Each once, `opened` when it was ordered or by its event, and before a layer of it lands."""
    for event in events:
        if isinstance(event, Opened):
            assert event.load_id not in opened
            opened.add(event.load_id)
        elif isinstance(event, LayerLanded) and is_told:
            assert event.load_id in opened
    assert bool(opened) == is_told


@pytest.mark.parametrize("board", [None, LandedBoard()], ids=["waits", "board"])
def test_threads_order_cancel_and_want_over_a_real_tier(
    tmp_path: Path, board: LandedBoard | None
) -> None:
    """Whatever they do at once, every order is answered once, what is there is whole, and no image
    stays held; where a board is, all are opened before a layer of theirs lands."""
    cards = store_cards(tmp_path)
    pool_PE = torch.full((8 * 5, 64), torch.nan)
    tier = HostTier(4 * 5 * 64 * 4, like=pool_PE)
    waiter, opened = Waiter(tier.let_go), set[int]()
    link = PoolLink(tier, pool_PE, waiter.wake, num_readers=3, board=board)
    barrier, num_loads = threading.Barrier(4), 60

    def orders(who: int) -> list[LoadOrder]:
        """Into pages of its own, so that the last one of each must be whole."""
        mine = []
        barrier.wait(WITHIN_S)
        for step in range(num_loads):
            index = (step * (who + 3) + who) % 8
            pages = tuple(range(5 * who, 5 * who + 5))
            mine.append(LoadOrder(who * num_loads + step, 0, 0, cards[index], pages))
            at_once = link.start(mine[-1])
            if at_once is not None:
                opened.add(at_once.load_id)
                link.let_go(at_once.image)
            if step % 3 == who % 3:
                link.cancel(mine[-1].load_id - who)
            if step % 5 == 0:
                link.want([cards[(index + ahead) % 8] for ahead in range(4)])
                tier.forget(cards[(index + 2) % 8].key)
        return mine

    with ThreadPoolExecutor(4) as threads:
        given = [order for mine in threads.map(orders, range(4)) for order in mine]
    events = waiter.collect(link, len(given))
    check_opened(events, opened, is_told=board is not None)
    ends = [event for event in events if isinstance(event, Loaded | LoadFailed)]
    assert sorted(event.load_id for event in ends) == sorted(order.load_id for order in given)
    lost = {order.load_id for order in given if order.card is cards[7]}
    for event in ends:
        assert isinstance(event, LoadFailed) == (event.load_id in lost) or isinstance(
            getattr(event, "error", None), LoadCancelled
        )
    for index, card in enumerate(cards[:7]):
        pages = tuple(range(5 * index, 5 * index + 5))
        at_once = link.start(LoadOrder(1000 + index, 0, 0, card, pages))
        if at_once is not None:
            link.let_go(at_once.image)
    waiter.collect(link, 7)
    for index in range(7):
        wanted = make_image(value=10_000.0 * index).pages
        assert torch.equal(pool_PE[5 * index : 5 * index + 5], wanted)
    link.want([])
    link.close()
    for card in cards:
        tier.forget(card.key)
    assert tier.stats().bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_load_waits_for_the_step_that_still_reads_its_pages(tmp_path: Path) -> None:
    """Pages are evicted while a step is under way on the device; bytes that come at once would
    change what that step reads, and what comes after must see them whole: from pinned memory, a
    copy goes on after the call that began it."""
    image, waiter = make_image(num_pages=5, width=1 << 16), Waiter()
    write_image(tmp_path / "image", image.layout, image.pages)
    pool_PE = torch.full((6, 1 << 16), -1, dtype=image.pages.dtype, device="cuda")
    tier = HostTier(8 * 4 << 16, like=pool_PE)
    card = make_card("a", num_pages=5, image_path=tmp_path / "image")
    held = tier.fetch(card)
    assert held.memory.is_pinned() and not held.is_loose
    link = PoolLink(tier, pool_PE, waiter.wake)
    torch.cuda._sleep(400_000_000)  # cycles: some 0.2 s of a step
    seen_PE = pool_PE.clone()
    link.start(LoadOrder(1, 0, 0, card, (1, 2, 3, 4, 5)))
    waiter.collect(link, 1)
    link.close()
    assert torch.equal(pool_PE[1:].cpu(), image.pages)
    assert bool((seen_PE == -1).all())
