"""The link at a pace that a test sets: what has not landed, what is given up, and at its end."""

from __future__ import annotations

import threading

import pytest
import torch

from lorry.adapters.host_tier import HeldImage
from lorry.adapters.key import AdapterCard
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import ImageSource, PoolLink
from lorry.server.memory.link_records import (
    LayerLanded,
    LoadCancelled,
    Loaded,
    LoadFailed,
    Opened,
)
from lorry.tests.link_builders import (
    PAGES,
    WITHIN_S,
    Gate,
    ManualTime,
    Source,
    Waiter,
    make_image,
    make_order,
    names_of,
)

RATE = 8.0 * 64 * 4  # bytes a second: a page of these images is 1/8 s


def make_link(
    source: ImageSource,
    pool_PE: torch.Tensor,
    time: ManualTime,
    waiter: Waiter,
    board: LandedBoard | None = None,
) -> PoolLink:
    return PoolLink(
        source,
        pool_PE,
        waiter.wake,
        board=board,
        num_readers=1,
        bytes_per_s=RATE,
        clock=time,
        wait=time.wait,
    )


def test_images_without_room_are_as_few_as_readers() -> None:
    """Host memory would grow with every order that finds the tier full of held images."""
    time, waiter = ManualTime(), Waiter()
    num_read = threading.Semaphore(0)

    def read(card: AdapterCard) -> HeldImage:
        num_read.release()
        return make_image(is_loose=True)

    link = make_link(Source(read), torch.zeros(15, 64), time, waiter)
    for load_id in range(3):
        link.start(make_order(load_id, tuple(range(5 * load_id, 5 * load_id + 5)), str(load_id)))
    for load_id in range(3):
        assert num_read.acquire(timeout=WITHIN_S)
        time.await_sleeper()
        assert not num_read.acquire(blocking=False), "read before the last one was across"
        time.advance(1.0)
        assert names_of(waiter.collect(link, 1)) == [(load_id, "Loaded")]
    link.close()


@pytest.mark.parametrize("stage", ["queued", "reading", "ready", "crossing"])
def test_a_cancelled_load_writes_nothing_more(stage: str) -> None:
    """Its pages are leased again at once; its image, held for ever, would never leave the tier."""
    gate, time, waiter = Gate(), ManualTime(), Waiter()
    pool_PE = torch.zeros(15, 64)
    source = Source(gate)
    link = make_link(source, pool_PE, time, waiter)
    mine = (5, 6, 7, 8, 9)
    if stage in ("ready", "crossing"):
        source.keep("2", make_image())
        source.keep("1", make_image(value=1000.0))
    if stage != "crossing":
        link.start(make_order(1, PAGES, name="1"))
    if stage == "ready":
        time.await_sleeper()
    elif stage in ("queued", "reading"):
        gate.await_reads(1)
    link.start(make_order(2, mine, name="2"))
    if stage == "reading":
        gate.let("1")
        gate.await_reads(2)
        time.await_sleeper()  # load 1 is on the wire
    if stage == "crossing":
        time.await_sleeper()
        time.advance(0.375)
        time.await_sleeper()
    link.cancel(2)
    link.cancel(2)
    link.cancel(77)
    (event,) = [event for event in waiter.collect(link, 1) if not isinstance(event, LayerLanded)]
    assert isinstance(event, LoadFailed) and isinstance(event.error, LoadCancelled)
    # Somebody else's from now on.
    pool_PE[list(mine)] = 5.0
    gate.let("1", "2")
    time.flow()
    if stage == "crossing":
        link.start(make_order(1, PAGES, name="1"))
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    link.close()
    assert (pool_PE[list(mine)] == 5.0).all() and not pool_PE[:5].isnan().any()
    assert all(image.num_holders == 0 for image in source.here.values())


def test_where_nobody_looks_at_layers_a_load_lands_once() -> None:
    """Each landing stops whoever computes, to tell nobody anything."""
    time, waiter, pool_PE = ManualTime(), Waiter(), torch.zeros(5, 64)
    image = make_image()
    link = make_link(Source(lambda card: image), pool_PE, time, waiter)
    link.start(make_order(1, PAGES))
    time.await_sleeper()
    time.advance(0.5)
    time.await_sleeper()
    assert pool_PE.isnan().all() and link.poll() == []
    time.advance(0.125)
    assert names_of(waiter.collect(link, 1)) == [(1, "Loaded")]
    assert torch.equal(pool_PE, image.pages)
    link.close()


def test_the_emulated_link_takes_its_time_and_hides_what_has_not_landed() -> None:
    """A load must be there when a link of that bandwidth would have brought it, not before."""
    time, waiter, pool_PE = ManualTime(), Waiter(), torch.zeros(10, 64)
    image = make_image()
    link = make_link(Source(lambda card: image), pool_PE, time, waiter, LandedBoard())
    link.start(make_order(1, PAGES))
    time.await_sleeper()
    assert pool_PE[:5].isnan().all()
    assert [type(event) for event in link.poll()] == [Opened]
    time.advance(0.25)
    time.await_sleeper()  # woken too early, it sleeps on
    assert pool_PE[:5].isnan().all() and link.poll() == []
    time.advance(0.125)
    time.await_sleeper()
    assert link.poll() == [LayerLanded(1, 1)]
    assert torch.equal(pool_PE[:3], image.pages[:3]) and pool_PE[3:5].isnan().all()
    link.start(make_order(2, (5, 6, 7, 8, 9)))
    assert pool_PE[5:].isnan().all()
    time.advance(0.125)
    time.await_sleeper()
    time.advance(0.125)
    assert waiter.collect(link, 1)[-1] == Loaded(1, image.layout, seconds=0.625, wire_s=0.625)
    time.await_sleeper()
    time.advance(1.0)
    (last,) = [event for event in waiter.collect(link, 1) if isinstance(event, Loaded)]
    assert (last.load_id, last.seconds, last.wire_s) == (2, 1.25, 1.0)
    link.close()


def test_close_does_not_wait_for_an_emulated_crossing() -> None:
    """Minutes of an emulated slow link would hold up the end."""
    time, pool_PE = ManualTime(), torch.zeros(10, 64)
    image = make_image()
    link = make_link(Source(lambda card: image), pool_PE, time, Waiter())
    link.start(make_order(1, PAGES))
    time.await_sleeper()
    link.start(make_order(2, (5, 6, 7, 8, 9)))  # ready, behind it
    link.close()
    assert not any(thread.is_alive() for thread in link._threads)
    assert link.poll() == [] and pool_PE.isnan().all() and image.num_holders == 0
