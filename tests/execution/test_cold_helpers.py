"""Helpers as threads: answers are the warm path's, and what cannot be answered is said at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.cold_start.handover import Errand
from lorry.server.execution.cold_start.helpers import Helpers
from lorry.server.execution.cold_start.mailbox import Entry, Kind
from lorry.tests.fakes import FakeClock
from lorry.tests.helper_builders import (
    WITHIN_S,
    ColdSlab,
    assert_answered,
    await_passed,
    hold_up,
    make_helpers,
    rows_of,
)
from lorry.tests.kernels_builders import assert_close

SHARED = (0, 1)  # sites that are given one input
RANKS = {0: 5, 1: 33, 2: 16, 3: 8, 4: 1, 5: 17}
ODD_RANKS = {0: 33, 1: 1, 2: 40, 3: 3, 4: 16, 5: 64}

Make = Callable[..., Helpers]


@pytest.fixture
def make() -> Iterator[Make]:
    """`make_helpers`, stopped at the end; nothing may be left in their mailboxes then."""
    made: list[Helpers] = []

    def make_them(slab: ColdSlab, **options: object) -> Helpers:
        made.append(make_helpers(slab, **options))  # pyright: ignore[reportArgumentType]
        return made[-1]

    yield make_them
    for helpers in made:
        helpers.lost()
        await_passed(helpers)
        assert not any(member.room.taken_bytes for member in helpers.crew.members)
        helpers.stop()


@pytest.mark.parametrize("num_helpers", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_are_the_warm_paths(make: Make, dtype: torch.dtype, num_helpers: int) -> None:
    """Odd ranks, tiles in any cells, rows in the middle, one row, shared out or not."""
    slab = ColdSlab(dtype)
    helpers = make(slab, num_helpers=num_helpers)
    images = {slot: slab.put(ranks) for slot, ranks in ((2, RANKS), (5, ODD_RANKS))}
    for slot, image in images.items():
        helpers.open(slot, image)
    for slot, image in images.items():
        for sites in (SHARED, (2,), (3, 4), (5,)):
            assert_answered(helpers, slab, image, Errand(slot, sites, 3, 47))
            assert_answered(helpers, slab, image, Errand(slot, sites, 49, 50))
    assert helpers.lost() == frozenset()


def test_several_errands_are_under_way_at_once(make: Make) -> None:
    """A step sends every adapter's rows before the base's product, and adds them after it."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2)
    images = [slab.put(RANKS, scale=0.5 + slot) for slot in range(3)]
    errands = [Errand(slot, SHARED, 10 * slot, 10 * slot + 10) for slot in range(3)]
    hidden_TI, outs_TO = rows_of(slab, errands[0])
    expected = [out.clone() for out in outs_TO]
    for image, errand in zip(images, errands, strict=True):
        helpers.open(errand.slot, image)
        slab.warm(image, errand, hidden_TI, expected)
    tickets = [helpers.send(errand, hidden_TI) for errand in errands]
    for ticket in reversed(tickets):
        assert ticket is not None
        assert ticket.add(outs_TO)
    for out, theirs in zip(outs_TO, expected, strict=True):
        assert_close(out, theirs)


def test_small_errands_of_many_adapters_are_spread(make: Make) -> None:
    """A burst's decode rows would all be the first helper's, and the others sleep."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2)
    for slot in range(4):
        helpers.open(slot, slab.put({0: 4}))
    firsts = [helpers.crew.able(slot)[0] for slot in range(4)]
    assert [firsts.count(member) for member in helpers.crew.members] == [2, 2]
    assert helpers.crew.able(1)[0] is firsts[1], "its factors are laid out with one of them"


def test_a_site_that_the_adapter_lacks_is_left_alone(make: Make) -> None:
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put({1: 4})
    helpers.open(0, image)
    assert_answered(helpers, slab, image, Errand(0, SHARED, 0, 20))
    assert_answered(helpers, slab, image, Errand(0, (2,), 0, 20))


def test_a_slot_that_is_used_again_gives_the_new_adapters_product(make: Make) -> None:
    """Factors that a helper has laid out belong to one opening, not to the slot's number."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2)
    first, second = slab.put(RANKS), slab.put(ODD_RANKS, scale=0.25)
    for image in (first, second, first):
        helpers.open(4, image)
        assert_answered(helpers, slab, image, Errand(4, SHARED, 0, 50))
    helpers.close(4)
    helpers.close(4)
    assert helpers.send(Errand(4, SHARED, 0, 50), slab.random(50, 96)) is None


def test_what_does_not_fit_the_mailboxes_is_not_sent(make: Make) -> None:
    """And the shares that did fit are given up: the next errand is answered."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2)
    image = slab.put(RANKS)
    helpers.open(0, image)
    room = helpers.crew.able(0)[1].room
    all_of_it = room.take(room.num_bytes)
    assert all_of_it is not None
    assert helpers.send(Errand(0, SHARED, 0, 50), slab.random(50, 96)) is None
    room.give(all_of_it)
    await_passed(helpers)
    assert_answered(helpers, slab, image, Errand(0, SHARED, 0, 50))
    too_many = slab.random(4000, 96)
    assert helpers.send(Errand(0, SHARED, 0, 4000), too_many) is None


def test_images_that_helpers_cannot_map_are_not_helped(make: Make) -> None:
    slab = ColdSlab()
    helpers = make(slab)
    image, hidden_TI = slab.put(RANKS), slab.random(4, 96)
    loose = replace(image, is_loose=True)
    elsewhere = replace(image, memory=image.memory.clone())
    for unhelpful in (loose, elsewhere):
        helpers.open(0, unhelpful)
        assert helpers.send(Errand(0, SHARED, 0, 4), hidden_TI) is None
    assert helpers.send(Errand(1, SHARED, 0, 4), hidden_TI) is None


def test_rows_of_other_sites_and_layouts_of_other_bases_are_refused(make: Make) -> None:
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put(RANKS)
    helpers.open(0, image)
    with pytest.raises(ValueError, match=r"of width 72; sites \(0, 1\)"):
        helpers.send(Errand(0, SHARED, 0, 4), slab.random(4, 72))
    with pytest.raises(ValueError, match=r"rows \[2, 9\)"):
        helpers.send(Errand(0, SHARED, 2, 9), slab.random(4, 96))
    cut = replace(image.layout.sites[0], a_offsets=(0,))
    broken = replace(image.layout, sites=(cut, *image.layout.sites[1:]))
    with pytest.raises(ValueError, match="has 1 tiles; 2 are needed"):
        helpers.open(1, replace(image, layout=broken))


def test_tickets_that_nobody_adds_give_their_room_back(make: Make) -> None:
    """A step that has lost an adapter adds nothing more of it."""
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put(RANKS)
    helpers.open(0, image)
    hidden_TI = slab.random(40, 96)
    for _ in range(20):
        assert helpers.send(Errand(0, SHARED, 0, 40), hidden_TI) is not None
        helpers.lost()
        await_passed(helpers)
    assert_answered(helpers, slab, image, Errand(0, SHARED, 0, 40))


def test_a_late_answer_is_nobodys(make: Make) -> None:
    """The outs stay, the slot is named once, nobody gets the bytes that the late one will write,
    and nothing is sent to a helper before it is past what was given up.
    """
    slab = ColdSlab()
    helpers = make(slab, patience_s=0.0)
    image = slab.put(RANKS)
    helpers.open(3, image)
    member, errand = helpers.crew.able(3)[0], Errand(3, SHARED, 0, 50)
    hidden_TI, outs_TO = rows_of(slab, errand)
    before = [out.clone() for out in outs_TO]
    let_go = hold_up(helpers, 3)
    ticket = helpers.send(errand, hidden_TI)
    assert ticket is not None
    assert not ticket.add(outs_TO)
    assert helpers.send(errand, hidden_TI) is None
    assert member.room.taken_bytes > 50 * 96 * 4
    assert (helpers.lost(), helpers.lost()) == ({3}, frozenset())
    assert helpers.stats().num_lost == 1
    let_go()
    await_passed(helpers)
    assert all(torch.equal(out, old) for out, old in zip(outs_TO, before, strict=True))
    helpers.crew.patience_s = WITHIN_S
    assert_answered(helpers, slab, image, errand)


def test_one_late_helper_is_waited_for_once(make: Make) -> None:
    """Thirty adapters of one step behind a helper that was stopped: half a minute for everybody."""
    slab = ColdSlab()
    helpers = make(slab, patience_s=0.0, clock=FakeClock())
    for slot in (3, 4):
        helpers.open(slot, slab.put(RANKS))
    let_go = hold_up(helpers, 3)
    hidden_TI, outs_TO = rows_of(slab, Errand(3, SHARED, 0, 50))
    first, second = (helpers.send(Errand(slot, SHARED, 0, 50), hidden_TI) for slot in (3, 4))
    assert first is not None and second is not None
    assert not first.add(outs_TO)
    helpers.crew.patience_s = WITHIN_S
    said: list[bool] = []
    waits = threading.Thread(target=lambda: said.append(second.add(outs_TO)), daemon=True)
    waits.start()
    waits.join(WITHIN_S / 6)
    hangs = waits.is_alive()
    let_go()
    waits.join(WITHIN_S)
    assert said == [False] and not hangs
    assert helpers.lost() == {3, 4}


def test_an_errand_is_answered_by_all_its_helpers_or_not_at_all(make: Make) -> None:
    """One of two is held up: nothing is added of the other's rows; then it is asked alone."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2, patience_s=0.0)
    image = slab.put(RANKS)
    helpers.open(3, image)
    errand = Errand(3, SHARED, 0, 50)
    hidden_TI, outs_TO = rows_of(slab, errand)
    before = [out.clone() for out in outs_TO]
    held, other = helpers.crew.able(3)
    let_go = hold_up(helpers, 3)
    ticket = helpers.send(errand, hidden_TI)
    assert ticket is not None
    number, epoch = 2, other.mailbox.read(2).epoch  # after its greeting and the opening
    assert other.await_answer(number, epoch, WITHIN_S)
    assert not ticket.add(outs_TO)
    assert all(torch.equal(out, old) for out, old in zip(outs_TO, before, strict=True))
    assert helpers.crew.able(3) == [other]
    helpers.crew.patience_s = WITHIN_S
    assert_answered(helpers, slab, image, errand)
    let_go()
    await_passed(helpers)
    assert helpers.crew.able(3) == [held, other]


def test_what_a_helper_could_not_do_is_no_answer(make: Make) -> None:
    """It says so at once: rows that will never come, or an opening that is over."""
    slab = ColdSlab()
    helpers = make(slab)
    helpers.open(3, slab.put(RANKS))
    member, epoch = helpers.crew.members[0], helpers.crew.next_epoch()
    number = member.post(Entry(Kind.ERRAND, epoch, 3, opening=99, num_rows=1, sites=(0,)))
    assert not member.await_answer(number, epoch, WITHIN_S)
    assert not member.is_over
    assert member.mailbox.done(number) == -epoch


def test_who_does_not_let_go_of_a_slot_is_replaced(make: Make) -> None:
    """The cells go to another image next. The newcomer is told what else is open."""
    slab = ColdSlab()
    helpers = make(slab, patience_s=0.0)
    images = [slab.put(RANKS), slab.put(ODD_RANKS)]
    for slot, image in enumerate(images):
        helpers.open(slot, image)
    old = helpers.crew.able(0)[0]
    hold_up(helpers, 0)
    helpers.close(0)
    assert old.is_over
    helpers.crew.patience_s = WITHIN_S
    assert helpers.crew.await_up(WITHIN_S) == 1
    assert helpers.crew.members != [old]
    assert helpers.stats().num_restarts == 1
    assert_answered(helpers, slab, images[1], Errand(1, SHARED, 0, 50))


def test_one_that_keeps_ending_is_left_alone_after_a_few_times(make: Make) -> None:
    slab = ColdSlab()
    helpers = make(slab)
    for num_restarts in (1, 2, 3):
        helpers.crew.members[0].kill()
        assert helpers.crew.await_up(WITHIN_S) == 1
        assert helpers.stats().num_restarts == num_restarts
    helpers.crew.members[0].kill()
    assert helpers.crew.await_up(WITHIN_S) == 0
    helpers.open(0, slab.put(RANKS))
    assert helpers.send(Errand(0, SHARED, 0, 4), slab.random(4, 96)) is None


@pytest.mark.parametrize(("num_read", "ready_site"), [(1, 3), (2, 6)])
def test_nothing_is_laid_out_ahead_that_is_not_in_host_memory(
    make: Make, num_read: int, ready_site: int
) -> None:
    """The board says how far; what is read too early would stay wrong for as long as it is kept."""
    slab, board = ColdSlab(), LandedBoard()
    helpers = make(slab, board=board)
    helpers.open(0, slab.put(RANKS))
    board.begin(0, 1)
    board.read(0, 1, num_read)
    member = helpers.crew.able(0)[0]
    assert helpers.send(Errand(0, SHARED, 0, 4), slab.random(4, 96)) is not None
    entry = member.mailbox.read(2)  # after its greeting and the opening
    assert (entry.kind, entry.ready_site) == (Kind.ERRAND, ready_site)
