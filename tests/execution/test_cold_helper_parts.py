"""The helpers' parts, each alone: mailbox, ledger, room, shares, cores, the fit, the desk."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorry.adapters.host_tier import HeldImage
from lorry.adapters.image import tile_cols
from lorry.server.errors import ConfigError
from lorry.server.execution.cold_start import ledger, mailbox
from lorry.server.execution.cold_start.cores import AUTO, MAX_AUTO, choose_cores
from lorry.server.execution.cold_start.desk import Desk, DeskPlan
from lorry.server.execution.cold_start.mailbox import MAX_SITES, Entry, Kind, Mailbox
from lorry.server.execution.cold_start.room import ALIGN_BYTES, Room, Stretch
from lorry.server.execution.cold_start.shards import split_rows
from lorry.server.execution.cold_start.speed import (
    Timed,
    blank_image,
    calibrate,
    fewest_tokens,
    fit_costs,
)
from lorry.server.execution.placing import place_tiles
from lorry.tests.fakes import FakeClock
from lorry.tests.helper_builders import PAGE_ELEMENTS, SITES, ColdSlab, make_helpers


def make_mailbox(data_bytes: int = 1 << 20) -> Mailbox:
    return Mailbox(torch.zeros(mailbox.mailbox_bytes(data_bytes), dtype=torch.uint8))


def test_an_entry_is_read_as_it_was_written() -> None:
    box = make_mailbox()
    entry = Entry(Kind.ERRAND, 77, 5, 3, 64, 4096, 17, 30, awaits_go=True, sites=(4, 5, 6))
    for number in (0, mailbox.NUM_ENTRIES - 1, mailbox.NUM_ENTRIES):
        box.write(number, entry)
        assert box.read(number) == entry
    with pytest.raises(ValueError, match=f"sites are {MAX_SITES + 1}; an entry has room for"):
        box.write(0, Entry(Kind.ERRAND, 1, sites=tuple(range(MAX_SITES + 1))))


def test_the_words_lie_where_kernels_are_told() -> None:
    box = make_mailbox()
    for number in (0, 5, mailbox.NUM_ENTRIES + 5):
        box.tell_done(number, 100 + number)
        box.tell_go(number, -200 - number)
        words = box.memory.view(torch.int64)
        assert words[mailbox.done_at(number) // 8] == 100 + number
        assert words[mailbox.go_at(number) // 8] == -200 - number
        assert (box.done(number), box.go(number)) == (100 + number, -200 - number)


def test_answers_do_not_share_a_cache_line() -> None:
    assert mailbox.answer_places(3, (5, 16, 1), 4) == [0, 64, 256, 320]
    assert mailbox.answer_places(3, (), 4) == [0]


def test_a_page_of_the_ledger_is_read_as_it_was_put() -> None:
    slab = ColdSlab()
    image = slab.put({0: 5, 3: 33, 5: 1}, scale=0.1)
    factors = place_tiles(image.layout, image.cells, PAGE_ELEMENTS)
    numbers = ledger.packed(factors)
    memory = torch.zeros(numbers.nbytes + 200, dtype=torch.uint8)
    ledger.put(memory, 128, numbers)
    found = ledger.read(memory, 128)
    assert list(found) == [0, 3, 5]
    for site, tiles in factors.items():
        assert (found[site].rank, found[site].scale) == (tiles.rank, 0.1)
        assert found[site].a_offsets == tuple(tiles.a_offsets.tolist())
        assert found[site].b_offsets == tuple(tiles.b_offsets.tolist())
    assert ledger.read(torch.from_numpy(ledger.packed({}).view(np.uint8)), 0) == {}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 700)), max_size=60))
def test_stretches_never_overlap_and_all_come_back(acts: list[tuple[bool, int]]) -> None:
    room, held = Room(4096), list[Stretch]()
    for is_taking, number in acts:
        if is_taking:
            found = room.take(number)
            if found is not None:
                assert found.start % ALIGN_BYTES == 0
                assert number <= found.end - found.start
                assert 0 <= found.start < found.end <= 4096
                assert all(found.end <= o.start or o.end <= found.start for o in held)
                held.append(found)
        elif held:
            room.give(held.pop(number % len(held)))
    for stretch in held:
        room.give(stretch)
    assert room.taken_bytes == 0
    assert room.take(4096) == Stretch(0, 4096)
    assert room.take(1) is None


@given(st.integers(1, 500), st.integers(1, 9), st.integers(0, 200))
def test_rows_are_shared_out_whole_and_in_order(num_rows: int, helpers: int, fewest: int) -> None:
    cuts = split_rows(num_rows, helpers, min_rows=fewest)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == num_rows
    assert all(end == start for (_, end), (start, _) in pairwise(cuts))
    lens = [end - start for start, end in cuts]
    assert 1 <= len(lens) <= helpers
    assert max(lens) - min(lens) <= 1
    assert len(lens) == 1 or min(lens) >= fewest


@pytest.mark.parametrize(
    ("asked", "threads", "helpers"),
    [
        (AUTO, 1, (5, 6, 7)),
        (AUTO, 3, (7,)),
        (AUTO, 9, ()),
        (AUTO, None, (6, 7)),
        (0, 1, ()),
        (2, 1, (6, 7)),
        (3, 1, (5, 6, 7)),
    ],
)
def test_helpers_have_the_last_cores(
    asked: int, threads: int | None, helpers: tuple[int, ...]
) -> None:
    cores = choose_cores({5, 2, 7, 6}, asked=asked, num_device_threads=threads)
    assert cores.helpers == helpers
    assert cores.others == tuple(core for core in (2, 5, 6, 7) if core not in helpers)


def test_more_helpers_than_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match="--helpers is 2; it must be at most 1: of 2 cores 1 are"):
        choose_cores({0, 1}, asked=2, num_device_threads=1)
    assert len(choose_cores(range(64), asked=AUTO, num_device_threads=None).helpers) == MAX_AUTO


def test_the_fit_finds_what_errands_cost() -> None:
    sizes = [(1, 1000), (32, 1000), (256, 50_000), (32, 50_000)]
    timed = [Timed(t, b, 1e-4 + 3e-10 * t * b) for t, b in sizes]
    costs = fit_costs(timed, num_calls=48)
    assert costs.num_calls == 48
    assert costs.call_s == pytest.approx(1e-4, rel=1e-6)
    assert costs.token_byte_s == pytest.approx(3e-10, rel=1e-6)
    assert fewest_tokens(costs, 10_000) == round(1e-4 / 3e-6)


@pytest.mark.parametrize(
    ("seconds", "call_s", "token_byte_s"),
    [
        ((2e-3, 1e-3), 1.2e-3, 0.0),  # more rows in less time: all of it is the call
        ((1e-6, 1e-2), 0.0, 1.9998e-9 / 2),  # a call in less than no time
        ((1e-3,), 0.0, 1e-6),  # one size says nothing of the call
    ],
)
def test_no_cost_is_negative(
    seconds: tuple[float, ...], call_s: float, token_byte_s: float
) -> None:
    timed = [Timed(tokens, 1000, s) for tokens, s in zip((1, 100), seconds, strict=False)]
    found = fit_costs(timed, num_calls=1)
    assert found.call_s == pytest.approx(call_s)
    assert found.token_byte_s == pytest.approx(token_byte_s, rel=0.02)


def test_calibration_takes_the_real_way() -> None:
    """A clock that goes on by one at each look: every errand took one second."""
    slab, clock = ColdSlab(), FakeClock()
    helpers = make_helpers(slab, num_helpers=2)
    try:
        costs = calibrate(
            helpers,
            slab.spec,
            [(0, 1), (2,), (3, 4), (5,)],
            clock=Ticking(clock),
            max_tokens=64,
            max_rank=16,
        )
        assert costs is not None
        assert costs.num_calls == 4
        assert costs.call_s + costs.token_byte_s > 0
        assert helpers.min_tokens >= 1
        assert helpers.crew.opening(0) is None
        assert calibrate(helpers, slab.spec, [], clock=clock, max_tokens=64, max_rank=16) is None
    finally:
        helpers.stop()
    assert blank_image(slab.spec, (0, 1), 500, memory=slab.cells.memory[:2]) is None


class Ticking:
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def now_s(self) -> float:
        self._clock.advance(1.0)
        return self._clock.now_s()


class DeskWorld:
    """A desk without a loop: entries are written and done by the test."""

    def __init__(self, ranks: dict[int, int], *, max_bytes: int = 1 << 20) -> None:
        self.slab = ColdSlab()
        self.image = self.slab.put(ranks)
        self.box = make_mailbox()
        self._pages = torch.zeros(1 << 16, dtype=torch.uint8)
        widths = tuple((site.in_width, site.out_width) for site in SITES)
        plan = DeskPlan(widths, tile_cols(PAGE_ELEMENTS), torch.float32)
        cells = self.slab.cells.memory.view(-1)
        self.desk = Desk(plan, self.box, self._pages, cells, max_bytes=max_bytes)
        self._number = 0

    def open(self, slot: int, opening: int, image: HeldImage) -> None:
        factors = place_tiles(image.layout, image.cells, PAGE_ELEMENTS)
        ledger.put(self._pages, 4096 * slot, ledger.packed(factors))
        self.do(Entry(Kind.OPEN, 1, slot, opening, 4096 * slot))

    def do(self, entry: Entry, await_go: Callable[[int, int], bool] = lambda n, e: True) -> int:
        """The entry's last word."""
        self._number += 1
        self.box.write(self._number, entry)
        self.desk.do(self._number, await_go)
        return self.box.done(self._number)

    def prepared(self) -> int:
        count = 0
        while self.desk.prepare():
            count += 1
        return count


ALL = {0: 5, 1: 33, 2: 16, 3: 8, 4: 1, 5: 17}


def errand(epoch: int = 9, *, opening: int = 1, ready: int = 0, sites: tuple[int, ...]) -> Entry:
    return Entry(Kind.ERRAND, epoch, 0, opening, 0, 65536, 2, ready, sites=sites)


def test_only_what_is_ready_is_laid_out_ahead() -> None:
    world = DeskWorld(ALL)
    world.open(0, 1, world.image)
    assert world.prepared() == 0
    assert world.do(errand(ready=3, sites=(0, 1))) == 9
    assert world.prepared() == 1
    assert world.do(errand(ready=6, sites=(0, 1))) == 9
    assert world.prepared() == 3
    assert world.do(errand(ready=6, sites=(0, 1))) == 9
    assert world.prepared() == 0


def test_a_slot_that_is_closed_leaves_nothing_on_the_desk() -> None:
    world = DeskWorld(ALL)
    world.open(0, 1, world.image)
    world.do(errand(ready=6, sites=(0, 1)))
    assert world.desk.laid_out_bytes > 0
    assert world.do(Entry(Kind.CLOSE, 12, 0)) == 12
    assert world.desk.laid_out_bytes == 0
    assert world.prepared() == 0
    assert world.do(errand(sites=(0, 1))) == -9


def test_an_errand_of_another_opening_is_not_answered() -> None:
    world = DeskWorld(ALL)
    world.open(0, 2, world.image)
    assert world.do(errand(opening=1, sites=(0,))) == -9
    assert world.do(errand(opening=2, sites=(0,))) == 9


def test_rows_that_do_not_come_are_not_answered() -> None:
    """On a GPU the entry is there before its rows."""
    world = DeskWorld(ALL)
    world.open(0, 1, world.image)
    asked: list[tuple[int, int]] = []

    def never(number: int, epoch: int) -> bool:
        asked.append((number, epoch))
        return False

    entry = Entry(Kind.ERRAND, 9, 0, 1, 0, 65536, 2, awaits_go=True, sites=(0,))
    assert world.do(entry, never) == -9
    assert asked == [(2, 9)]
    assert world.do(entry) == 9


def test_factors_laid_out_stay_within_their_bytes() -> None:
    largest = (96 + 40) * 33 * 4  # site 1 at rank 33
    world = DeskWorld(ALL, max_bytes=largest)
    world.open(0, 1, world.image)
    for sites in ((0, 1), (2,), (3, 4), (5,), (1,)):
        assert world.do(errand(ready=6, sites=sites)) == 9
        world.prepared()
        assert world.desk.laid_out_bytes <= largest
