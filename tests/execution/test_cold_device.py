"""The hand-over of a GPU, its kernels interpreted, with helpers that are threads of the test."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest
import torch

from lorry.adapters.host_tier import HeldImage
from lorry.server.execution.cold_start.device_handover import DeviceHelpers
from lorry.server.execution.cold_start.device_memory import check_host
from lorry.server.execution.cold_start.handover import Errand, Ticket
from lorry.tests.helper_builders import NUM_LAYERS, SITES, WITHIN_S, ColdSlab, ThreadHelper, hold_up
from lorry.tests.kernels_builders import INTERPRETED, assert_close

pytestmark = INTERPRETED

MANY_LOOKS = 1 << 30
FEW_LOOKS = 3


@pytest.fixture(autouse=True)
def _share_the_interpreter() -> Generator[None]:
    """A kernel that waits is a loop in Python: the helper beside it gets its turn soon."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


def make(slab: ColdSlab, **changes: Any) -> DeviceHelpers:
    """Up, and with patience for ever."""
    options: dict[str, Any] = {"max_tokens": 64, "spawn": ThreadHelper, "num_helpers": 1, **changes}
    num_helpers = options.pop("num_helpers")
    device = torch.device("cpu")
    helpers = DeviceHelpers(
        slab.cells, SITES, range(num_helpers), num_layers=NUM_LAYERS, device=device, **options
    )
    helpers.max_looks = MANY_LOOKS
    assert helpers.crew.await_up(WITHIN_S) == num_helpers
    return helpers


class Rows:
    """The rows of a step at sites that share an input."""

    def __init__(self, slab: ColdSlab, sites: tuple[int, ...], *, num_rows: int = 12) -> None:
        self.hidden_TI = slab.random(num_rows, SITES[sites[0]].in_width)
        self.outs_TO = [slab.random(num_rows, SITES[site].out_width) for site in sites]
        self.before = [out.clone() for out in self.outs_TO]

    @property
    def untouched(self) -> bool:
        return all(map(torch.equal, self.outs_TO, self.before))


def ask(helpers: DeviceHelpers, errand: Errand, rows: Rows) -> bool:
    """Whether helpers were asked. The answer is added, or not, by the device."""
    ticket = helpers.send(errand, rows.hidden_TI)
    return ticket is not None and ticket.add(rows.outs_TO)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_answers_are_those_of_the_warm_path(dtype: torch.dtype) -> None:
    """Two slots at once, rows in the middle of a step, shared by two helpers; an adapter that lacks
    a site leaves its out alone; all bytes come back."""
    slab = ColdSlab(dtype)
    helpers = make(slab, num_helpers=2)
    images = {3: slab.put({0: 5, 1: 16, 2: 8}), 9: slab.put({1: 33})}
    for slot, image in images.items():
        helpers.open(slot, image)
    rows = Rows(slab, (0, 1))
    expected = [out.clone() for out in rows.outs_TO]
    errands = [Errand(3, (0, 1), 1, 8), Errand(9, (0, 1), 8, 11)]
    for errand in errands:
        slab.warm(images[errand.slot], errand, rows.hidden_TI, expected)
    tickets = [helpers.send(errand, rows.hidden_TI) for errand in errands]
    assert all(ticket is not None and ticket.add(rows.outs_TO) for ticket in tickets)
    assert helpers.lost() == frozenset()
    for ours, theirs in zip(rows.outs_TO, expected, strict=True):
        assert_close(ours, theirs)
    assert all(member.room.taken_bytes == 0 for member in helpers.crew.able(3))
    helpers.close(3)
    assert helpers.send(errands[0], rows.hidden_TI) is None
    helpers.stop()


def send_when_all_have_passed(helpers: DeviceHelpers, errand: Errand, rows: Rows) -> Ticket:
    while (ticket := helpers.send(errand, rows.hidden_TI)) is None:
        pass
    return ticket


def assert_right_again(
    helpers: DeviceHelpers, slab: ColdSlab, image: HeldImage, errand: Errand, rows: Rows
) -> None:
    """What was given up left nothing behind: neither in the outs nor among the helpers."""
    helpers.max_looks = MANY_LOOKS
    assert send_when_all_have_passed(helpers, errand, rows).add(rows.outs_TO)
    assert helpers.lost() == frozenset()
    expected = [out.clone() for out in rows.before]
    slab.warm(image, errand, rows.hidden_TI, expected)
    for ours, theirs in zip(rows.outs_TO, expected, strict=True):
        assert_close(ours, theirs)
    helpers.stop()


def test_a_late_answer_is_nobodys() -> None:
    """A helper that comes back after the device gave up finds no newer rows to spoil: nobody is
    asked before it has passed what was given up. Then it is asked again, and right."""
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put({0: 4, 1: 8})
    helpers.open(3, image)
    errand, rows = Errand(3, (0, 1), 0, 12), Rows(slab, (0, 1))
    let_go = hold_up(helpers, 3)
    helpers.max_looks = FEW_LOOKS
    # The host never looks: it hears True, and so it does of all that the step asks after it.
    assert ask(helpers, errand, rows)
    helpers.max_looks = MANY_LOOKS  # nobody looks so often: one loss voids what follows
    assert ask(helpers, errand, rows)
    assert helpers.lost() == {3}
    assert rows.untouched
    assert helpers.stats().num_lost == 2
    assert not ask(helpers, errand, rows)
    assert helpers.lost() == frozenset()
    let_go()
    assert_right_again(helpers, slab, image, errand, rows)


def test_a_helper_that_died_loses_its_rows_and_nothing_else() -> None:
    """The device gives up by itself, the rows are named, and another process takes the place."""
    slab = ColdSlab()
    helpers = make(slab, num_helpers=2)
    image = slab.put({2: 8})
    helpers.open(5, image)
    errand, rows = Errand(5, (2,), 0, 12), Rows(slab, (2,))
    hold_up(helpers, 5)
    ticket = helpers.send(errand, rows.hidden_TI)
    assert ticket is not None
    for member in helpers.crew.able(5):
        member.kill()
    helpers.max_looks = FEW_LOOKS
    assert ticket.add(rows.outs_TO)
    assert helpers.lost() == {5}
    assert rows.untouched
    assert helpers.send(errand, rows.hidden_TI) is None
    while helpers.stats().num_up < 2:
        helpers.crew.tend()
    assert helpers.stats().num_restarts == 2
    assert_right_again(helpers, slab, image, errand, rows)


def test_what_does_not_fit_is_not_asked() -> None:
    """Too many rows, sites or errands, or a slot that is not open: the caller does without, and no
    byte is kept."""
    slab = ColdSlab()
    helpers = make(slab, max_tokens=4, num_slips=2, num_helpers=2)
    helpers.open(3, slab.put({0: 4}))
    rows = Rows(slab, (0,), num_rows=64)
    for errand in (
        Errand(3, (0,), 0, 64),
        Errand(3, (1,), 0, 1),  # the adapter lacks the site
        Errand(3, (0,) * 12, 0, 1),
        Errand(4, (0,), 0, 1),
    ):
        assert helpers.send(errand, rows.hidden_TI) is None
    first, second = helpers.crew.able(3)
    taken = second.room.take(second.room.num_bytes)
    assert taken is not None
    assert helpers.send(Errand(3, (0,), 0, 2), rows.hidden_TI) is None  # one for each
    second.room.give(taken)
    assert first.room.taken_bytes == second.room.taken_bytes == 0
    with pytest.raises(ValueError, match=r"rows are torch\.float16"):
        helpers.send(Errand(3, (0,), 0, 1), rows.hidden_TI.half())
    asked = [ask(helpers, Errand(3, (0,), 0, 1), rows) for _ in range(3)]
    assert asked == [True, True, False]
    assert helpers.lost() == frozenset()
    assert ask(helpers, Errand(3, (0,), 0, 1), rows)
    helpers.stop()


def test_a_ticket_that_is_dropped_is_passed_before_its_bytes_are_used_again() -> None:
    """Its helper writes an answer that nobody waited for; newer rows must not lie there yet."""
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put({0: 4})
    helpers.open(3, image)
    errand, rows = Errand(3, (0,), 0, 12), Rows(slab, (0,))
    let_go = hold_up(helpers, 3)
    assert helpers.send(errand, rows.hidden_TI) is not None
    assert helpers.lost() == frozenset()
    assert helpers.send(errand, rows.hidden_TI) is None
    let_go()
    assert_right_again(helpers, slab, image, errand, rows)


def test_a_calibration_waits_for_the_device() -> None:
    """Its `add` says whether the answer was added; else it would time launches alone."""
    slab = ColdSlab()
    helpers = make(slab)
    image = slab.put({0: 4})
    helpers.open(3, image)
    errand, rows = Errand(3, (0,), 0, 12), Rows(slab, (0,))
    let_go = hold_up(helpers, 3)
    helpers.max_looks = FEW_LOOKS
    with helpers.waiting():
        assert not ask(helpers, errand, rows)
    assert helpers.lost() == {3}
    let_go()
    assert_right_again(helpers, slab, image, errand, rows)


def test_a_processor_that_reorders_stores_is_refused() -> None:
    """There a helper's word may be seen before its answer, and the device would add what was there
    before: wrong tokens, without an error."""
    check_host("x86_64")
    with pytest.raises(RuntimeError, match="this one is aarch64"):
        check_host("aarch64")
