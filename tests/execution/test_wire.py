"""How bytes move: what is one copy, what is refused, and the pace of the emulated wire."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from lorry.server.execution.load_queue import Load
from lorry.server.execution.wire import EmulatedWire, HostWire, copy_pages
from lorry.tests.fakes import FakeClock
from lorry.tests.link_builders import make_image, make_order

NUM_LAYERS = 4  # of the images
PAGE_BYTES = 64 * 4
RATE = 8.0 * PAGE_BYTES  # bytes a second: a page is 1/8 s


def make_load(
    ready_s: float = 100.0, pages: tuple[int, ...] = (7, 8, 2, 3, 11), value: float = 1.0
) -> Load:
    """All of it is in host memory."""
    image = make_image(value=value)
    return Load(make_order(1, pages), ready_s, image=image, num_read=NUM_LAYERS, ready_s=ready_s)


def make_wire(
    pool_PE: torch.Tensor, clock: FakeClock, on_wait: Callable[[float], None] | None = None
) -> EmulatedWire:
    """Its waits move the clock."""

    def wait(changed: threading.Condition, timeout_s: float) -> None:
        (on_wait or clock.advance)(timeout_s)

    return EmulatedWire(pool_PE, RATE, clock=clock, changed=threading.Condition(), wait=wait)


@pytest.mark.parametrize("pages", [(7, 8, 2, 3, 11), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0)])
def test_pages_arrive_from_their_cells(pages: tuple[int, ...]) -> None:
    """A page would come from where its neighbour lies: stretches differ on the two sides."""
    image, pool_PE = make_image(), torch.full((12, 64), torch.nan)
    copy_pages(image, pool_PE, pages, 0, 3)
    copy_pages(image, pool_PE, pages, 3, 5)
    assert torch.equal(pool_PE[list(pages)], image.pages)
    others = [page for page in range(12) if page not in pages]
    assert pool_PE[others].isnan().all()


def test_neighbours_on_both_sides_are_one_copy() -> None:
    """On a GPU each copy costs some microseconds; an image has hundreds of pages."""
    copies: list[int] = []

    class Home:
        def __getitem__(self, stretch: slice) -> Home:
            copies.append(stretch.stop - stretch.start)
            return self

        def copy_(self, source: torch.Tensor, *, non_blocking: bool) -> None:
            assert len(source) == copies[-1] and non_blocking

    image = make_image()  # cells 2, 3, 4, 0, 1
    copy_pages(image, Home(), (5, 6, 7, 8, 9), 0, 5)  # type: ignore[arg-type]
    copy_pages(image, Home(), (5, 6, 9, 1, 2), 0, 5)  # type: ignore[arg-type]
    assert copies == [3, 2, 2, 1, 2]


def test_an_emulated_layer_lands_at_its_time() -> None:
    """A prefill could start on bytes that a real link would still be bringing."""
    clock, pool_PE = FakeClock(), torch.zeros(12, 64)
    wire, load = make_wire(pool_PE, clock), make_load()
    wire.clear(load.order.pages)
    assert pool_PE[list(load.order.pages)].isnan().all() and not pool_PE[[0, 1, 4, 12 - 2]].any()
    landed: list[tuple[int, float, int]] = []

    def look(layer: int) -> None:
        there = (~pool_PE[list(load.order.pages)].isnan()).all(dim=1)
        landed.append((layer, clock.now_s(), int(there.sum())))

    assert wire.carry(load, NUM_LAYERS, look)
    assert landed == [(1, 100.375, 3), (2, 100.5, 4), (3, 100.625, 5)]


def test_bytes_of_all_loads_queue_for_the_emulated_wire() -> None:
    """Two loads at once would each have the whole link; a late thread would slow it down."""
    clock, pool_PE = FakeClock(), torch.zeros(12, 64)
    wire, times = make_wire(pool_PE, clock), list[float]()
    wire.carry(make_load(), NUM_LAYERS, lambda layer: None)
    clock.advance(0.25)  # the thread comes late to what was ready at 100.0, and catches up
    wire.carry(make_load(100.0), NUM_LAYERS, lambda layer: times.append(clock.now_s()))
    wire.carry(make_load(200.0), NUM_LAYERS, lambda layer: times.append(clock.now_s()))
    assert times == [101.0, 101.125, 101.25, 200.375, 200.5, 200.625]


def test_a_load_crosses_as_far_as_it_is_read_and_goes_on_from_there() -> None:
    """Pages that the disk has not brought would land as whatever lay in their cells."""
    clock, pool_PE = FakeClock(), torch.zeros(12, 64)
    wire, load, landed = make_wire(pool_PE, clock), make_load(), list[tuple[int, float]]()
    wire.clear(load.order.pages)

    def look(layer: int) -> None:
        landed.append((layer, clock.now_s()))

    assert wire.carry(load, 3, look)
    assert landed == [(1, 100.375), (2, 100.5)] and pool_PE[11].isnan().all()
    wire.carry(make_load(pages=(0, 1, 4, 5, 6)), NUM_LAYERS, lambda layer: None)
    load.num_crossed, load.ready_s = 3, 101.0
    assert wire.carry(load, NUM_LAYERS, look)
    assert landed[2:] == [(3, 101.125 + 0.125)]  # the wire was free at 101.125
    assert load.image is not None
    assert torch.equal(pool_PE[list(load.order.pages)], load.image.pages)


def test_a_load_given_up_lands_no_further_layer() -> None:
    """Its pages are somebody else's from then on; the time it took is not given back."""
    clock, pool_PE = FakeClock(), torch.zeros(12, 64)
    load, waits = make_load(), list[float]()

    def on_wait(timeout_s: float) -> None:
        waits.append(timeout_s)
        clock.advance(0.0625 if len(waits) == 2 else timeout_s)
        load.is_given_up = len(waits) == 2

    wire, landed = make_wire(pool_PE, clock, on_wait), list[int]()
    wire.clear(load.order.pages)
    assert not wire.carry(load, NUM_LAYERS, landed.append)
    assert landed == [1] and pool_PE[[3, 11]].isnan().all()
    times = list[float]()
    wire.carry(make_load(), NUM_LAYERS, lambda layer: times.append(clock.now_s()))
    assert times == [100.4375 + 0.375, 100.4375 + 0.5, 100.4375 + 0.625]
    given_up = make_load()
    given_up.is_given_up = True
    assert not HostWire(pool_PE).carry(given_up, NUM_LAYERS, landed.append) and landed == [1]
