"""Loads that a step may use before they have ended: layers flow disk -> host -> pool, the board and
the hearer of `Opened` know of each, and nothing is freed under them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage
from lorry.adapters.key import AdapterCard
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import LoadCancelled, Loaded, LoadFailed, Opened
from lorry.tests.link_builders import (
    WITHIN_S,
    Gate,
    ManualTime,
    Source,
    Waiter,
    make_image,
    make_order,
    names_of,
)
from lorry.tests.stream_builders import (
    FIRST_BYTES,
    IMAGE_BYTES,
    NUM_LAYERS,
    await_idle,
    is_void,
    kinds,
    streaming,
)


def test_the_first_layers_land_before_the_last_bytes_are_read(tmp_path: Path) -> None:
    """A cold request would wait for the whole file before its first layer is computed."""
    with streaming(tmp_path) as world:
        card = world.card("a")
        assert world.start(0, card) is None
        events = world.waiter.until(world.link, bool)
        assert kinds(events, 0) == ["Opened"]  # by the header alone
        image = world.heard[0]
        assert not world.board.await_either(0, 0, 0.0)
        # One byte less than the first layers: they are not proven.
        world.disk.let("a", FIRST_BYTES - 1)
        world.disk.await_reader("a")
        assert world.link.poll() == [] and not world.board.has_landed(0, 0)
        world.disk.let("a", FIRST_BYTES)
        assert kinds(world.until_landed(0, 1), 0) == ["L1"]
        assert world.board.has_landed(0, 1) and not world.board.has_landed(0, 2)
        assert world.board.await_either(0, 1, 0.0) and not world.board.await_either(0, 2, 0.0)
        assert torch.equal(world.pages(0)[:3], make_image().pages[:3])
        assert world.pages(0)[3:].isnan().all()
        world.disk.let("a")
        assert kinds(world.until_ends(1), 0) == ["L2", "L3", "Loaded"]
        assert world.board.has_landed(0, 3)
        assert torch.equal(world.pages(0), image.pages)
        assert world.disk.num_opened == 1 and world.tier.contains(card.key)


def test_what_is_in_host_memory_is_open_at_once(tmp_path: Path) -> None:
    """A step's delay before the first row would cost what a helper gains; told twice, its image
    would be held for ever."""
    with streaming(tmp_path) as world:
        card = world.card("a")
        world.disk.let("a")
        world.tier.let_go(world.tier.fetch(card))
        opened = world.start(0, card)
        assert opened is not None and opened.load_id == 0
        assert world.board.await_either(0, NUM_LAYERS - 1, 0.0)
        assert kinds(world.until_ends(1), 0) == ["L1", "L2", "L3", "Loaded"]
        # Held for the hearer: what needs its cells must look elsewhere.
        world.tier.forget(card.key)
        assert world.tier.stats().bytes == IMAGE_BYTES
        world.let_go_all()
        assert world.tier.stats().bytes == 0


def test_damage_in_a_later_layer_fails_the_load_and_frees_nothing_that_is_held(
    tmp_path: Path,
) -> None:
    """The first layers were used already; their cells would go to another adapter while a helper
    still reads them, and the request wait for layers that never come."""
    with streaming(tmp_path, num_images=1) as world:
        card = world.card("a")
        whole = card.image_path.read_bytes()
        card.image_path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        world.start(0, card)
        world.disk.let("a", FIRST_BYTES)
        world.until_landed(0, 1)
        held = world.heard[0].pages[:3]
        world.disk.let("a")
        *layers, end = world.until_ends(1)
        # Pages 0 to 3 are proven; whether layer 2 crosses before the read has failed is a race.
        assert kinds(layers, 0) in ([], ["L2"])
        assert isinstance(end, LoadFailed) and isinstance(end.error, AdapterLoadFailed)
        assert "layer 3" in str(end.error) and "default/a@1" in str(end.error)
        assert is_void(world.board, 0)  # whoever waits is told at once
        assert world.pages(0)[4].isnan().all()
        # Its only place is held: another image lies elsewhere.
        world.disk.let("b")
        other = world.tier.fetch(world.card("b", value=100.0))
        assert other.is_loose
        world.tier.let_go(other)
        assert torch.equal(world.heard[0].pages[:3], held)
        world.let_go_all()
        assert world.tier.stats().bytes == 0
        card.image_path.write_bytes(whole)
        world.start(1, card)
        assert names_of(world.until_ends(1)) == [(1, "Loaded")]


def test_a_stream_that_is_cancelled_writes_nothing_more_and_its_image_is_kept(
    tmp_path: Path,
) -> None:
    """Its pages are somebody else's at once, though the disk goes on; who waits for a layer in
    vain would wait to the bound."""
    with streaming(tmp_path) as world:
        card = world.card("a")
        world.start(0, card)
        world.disk.let("a", FIRST_BYTES)
        world.until_landed(0, 1)
        world.disk.await_reader("a")
        world.link.cancel(0)
        (end,) = world.until_ends(1)
        assert isinstance(end, LoadFailed) and isinstance(end.error, LoadCancelled)
        assert is_void(world.board, 0)
        world.pages(0)[:] = 5.0
        again = world.start(1, card)  # joins the read
        assert again is not None
        world.disk.let("a")
        assert names_of(world.until_ends(1)) == [(1, "Loaded")]
        assert (world.pages(0) == 5.0).all() and world.tier.contains(card.key)
        assert torch.equal(world.pages(1), make_image().pages) and world.disk.num_opened == 1


def test_a_stream_that_is_cancelled_as_its_last_layer_so_far_lands_ends(tmp_path: Path) -> None:
    """The wire would not look again, and nobody ever hear of the load: its pages stay for good."""
    with streaming(tmp_path) as world:

        def cancel() -> None:
            if world.board.has_landed(0, 1):
                world.link.cancel(0)

        world.on_wake = cancel
        world.start(0, world.card("a"))
        world.disk.let("a", FIRST_BYTES)
        *_, end = world.until_ends(1)
        assert isinstance(end, LoadFailed) and isinstance(end.error, LoadCancelled)
        assert is_void(world.board, 0) and world.pages(0)[3:].isnan().all()
        world.disk.let("a")


def test_two_loads_flow_from_one_read(tmp_path: Path) -> None:
    """The second would read the file again, or wait for its end; or be told of no layer."""
    with streaming(tmp_path) as world:
        card = world.card("a")
        world.link.want([card])
        world.disk.await_reader("a")
        assert world.start(0, card) is not None  # its cells are known, none of its layers is there
        assert not world.board.await_either(0, 0, 0.0)
        world.disk.let("a", FIRST_BYTES)
        world.until_landed(0, 1)
        assert world.start(1, card) is not None
        assert world.board.await_either(1, 1, 0.0)
        world.until_landed(1, 1)
        world.disk.let("a")
        events = world.until_ends(2)
        assert kinds(events, 0) == kinds(events, 1) == ["L2", "L3", "Loaded"]
        assert torch.equal(world.pages(0), world.pages(1)) and world.disk.num_opened == 1
        assert len(world.heard) == 2 and world.heard[0] is world.heard[1]


def test_others_cross_while_a_stream_waits_for_its_disk(tmp_path: Path) -> None:
    """One hanging disk would stop every load, also of what is in host memory."""
    with streaming(tmp_path) as world:
        cold, warm = world.card("a"), world.card("b", value=100.0)
        world.disk.let("b")
        world.tier.let_go(world.tier.fetch(warm))
        world.start(0, cold)
        world.disk.let("a", FIRST_BYTES)
        world.until_landed(0, 1)
        world.disk.await_reader("a")
        world.start(1, warm)
        assert names_of(world.until_ends(1)) == [(1, "Loaded")]
        world.disk.let("a")
        assert names_of(world.until_ends(1)) == [(0, "Loaded")]
        assert torch.equal(world.pages(1), make_image(value=100.0).pages)


def test_a_read_that_fails_while_its_load_crosses_waits_for_the_wire(tmp_path: Path) -> None:
    """Its pages would go to somebody else, and the wire still write them."""
    time = ManualTime()
    with streaming(tmp_path, clock=time) as world:
        card = world.card("a")
        whole = card.image_path.read_bytes()
        card.image_path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        world.start(0, card)
        world.disk.let("a", FIRST_BYTES)
        time.await_sleeper()  # the first layers are on the wire
        world.disk.let("a")
        (end,) = [event for event in world.until_ends(1) if isinstance(event, LoadFailed)]
        assert "layer 3" in str(end.error)
        world.pages(0)[:] = 5.0
        world.disk.let("b")
        time.flow()
        world.start(1, world.card("b"))
        assert names_of(world.until_ends(1)) == [(1, "Loaded")]
        assert (world.pages(0) == 5.0).all()


def test_the_books_of_a_stream_know_disk_from_wire(tmp_path: Path) -> None:
    """The cost model would learn a link as slow as the disk, and every start be foretold so."""
    time = ManualTime()
    with streaming(tmp_path, clock=time) as world:
        world.start(0, world.card("a"))
        world.disk.await_reader("a")
        time.advance(1.0)
        world.disk.let("a", FIRST_BYTES)
        time.await_sleeper()
        time.advance(0.375)
        world.until_landed(0, 1)
        world.disk.await_reader("a")
        time.advance(10.0)
        world.disk.let("a")
        time.await_sleeper()
        assert world.board.await_either(0, 3, WITHIN_S)  # the disk is done, the wire is not
        time.flow()
        (loaded,) = [event for event in world.until_ends(1) if isinstance(event, Loaded)]
        assert (loaded.disk_s, loaded.read_s) == (11.375, 11.375)
        assert (loaded.wire_s, loaded.seconds) == (0.375 + 0.25, 11.375 + 0.25)


def test_images_without_room_stay_as_few_as_readers_until_they_are_let_go() -> None:
    """Whoever hears of an image holds it longer than its load lasts: host memory would grow by
    every load that lands within one step."""
    gate, waiter, pool_PE = Gate(), Waiter(), torch.zeros(10, 64)
    gate.let("1", "2")

    def read(card: AdapterCard) -> HeldImage:
        image = gate(card)
        return HeldImage(image.layout, image.memory, image.cells, is_loose=True)

    link = PoolLink(Source(read), pool_PE, waiter.wake, board=LandedBoard(), num_readers=1)
    link.start(make_order(1, (0, 1, 2, 3, 4), "1"))
    link.start(make_order(2, (5, 6, 7, 8, 9), "2"))
    events = waiter.collect(link, 1)
    (first,) = [event for event in events if isinstance(event, Opened)]
    await_idle(link)
    assert gate.reading == ["1"]
    link.let_go(first.image)
    events = waiter.collect(link, 1)
    assert names_of(events) == [(2, "Loaded")] and gate.reading == ["1", "2"]
    link.close()  # a reader waits for the second to be let go
    assert not any(thread.is_alive() for thread in link._threads)


def test_close_lets_go_of_what_nobody_has_heard(tmp_path: Path) -> None:
    """An image held for a message that is never read would stay for good."""
    with streaming(tmp_path) as world:
        card = world.card("a")
        world.start(0, card)
        world.disk.let("a", FIRST_BYTES)
        assert world.board.await_landed(0, 1, WITHIN_S)
        world.disk.await_reader("a")
        closer = threading.Thread(target=world.link.close, daemon=True)
        closer.start()
        assert not world.board.await_landed(0, 3, WITHIN_S) and is_void(world.board, 0)
        world.disk.let("a")
        closer.join(WITHIN_S)
        assert not closer.is_alive()
        assert world.link.poll() == [] and not world.heard


def test_without_a_board_nothing_is_opened() -> None:
    """A server that always waits would hold every image that it has loaded."""
    waiter, image = Waiter(), make_image()
    source = Source(lambda card: image)
    link = PoolLink(source, torch.zeros(5, 64), waiter.wake)
    assert link.start(make_order(1, (0, 1, 2, 3, 4))) is None
    assert not [event for event in waiter.collect(link, 1) if isinstance(event, Opened)]
    assert link.start(make_order(2, (0, 1, 2, 3, 4))) is None  # it is in host memory now
    waiter.collect(link, 1)
    link.close()
    assert image.num_holders == 0


@pytest.mark.parametrize("in_host", [False, True])
def test_an_image_that_does_not_fit_is_not_opened(in_host: bool) -> None:
    """Its cells would be taken for pages of a shape that they have not."""
    waiter, source, board = Waiter(), Source(lambda card: make_image(num_pages=4)), LandedBoard()
    if in_host:
        source.keep("a", make_image(num_pages=4))
    link = PoolLink(source, torch.zeros(5, 64), waiter.wake, board=board)
    assert link.start(make_order(1, (0, 1, 2, 3, 4))) is None
    (event,) = waiter.collect(link, 1)
    assert isinstance(event, LoadFailed)
    assert is_void(board, 0)
    link.close()
