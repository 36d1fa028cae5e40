"""What is told of the way a request began: the last choice, and when it was made first."""

import math

import pytest

from lorry.server.scheduling.records import PlannedRun, PlannedStart, StepPlan
from lorry.server.scheduling.starts import Start, StartTold, Way
from lorry.server.scheduling.starts_book import OVERTAKEN, StartsBook


def chose(way: Way, now_s: float, *, predicted_s: float = 1.0, runs: bool = False) -> StepPlan:
    start = Start(way, f"because of {way.name}", predicted_s, now_s, {Way.WAIT: 5.0})
    run = (PlannedRun(3, 0, 4, 1),) if runs else ()
    return StepPlan(now_s=now_s, starts=(PlannedStart(3, start),), runs=run)


def test_a_choice_that_is_made_again_counts_from_its_beginning():
    """What was foretold when it waited for two seconds would be compared with its last moment."""
    book = StartsBook()
    book.chose(chose(Way.WAIT, 1.0, predicted_s=2.0))
    book.chose(chose(Way.WAIT, 2.0, predicted_s=1.0))
    assert book.told(3, 3.5) == StartTold(Way.WAIT, "because of WAIT", 2.0, 2.5)
    book.chose(chose(Way.ASSIST, 2.5, predicted_s=0.5, runs=True))
    assert book.told(3, 3.5) == StartTold(Way.ASSIST, "because of ASSIST", 0.5, 1.0)


def test_a_way_that_it_never_came_to_was_a_wait():
    """Streams would be counted that nobody saw."""
    book = StartsBook()
    book.chose(chose(Way.STREAM, 1.0))
    book.chose(StepPlan(now_s=2.0, runs=(PlannedRun(3, 0, 4, 1),)))
    assert book.told(3, 4.0) == StartTold(Way.WAIT, OVERTAKEN, 5.0, 3.0)


def test_what_began_cold_stays_so_when_its_adapter_arrives():
    """A later step of a long prompt would turn a stream into a wait."""
    book = StartsBook()
    book.chose(chose(Way.STREAM, 1.0, runs=True))
    book.chose(StepPlan(now_s=2.0, runs=(PlannedRun(3, 4, 4, 1),)))
    told = book.told(3, math.nan)
    assert told is not None and told.way is Way.STREAM
    assert told.measured_s == 0.0, "there was no token"


@pytest.mark.parametrize("known", [True, False])
def test_a_dropped_row_leaves_nothing(known):
    """The next request of the row would be told somebody else's start."""
    book = StartsBook()
    if known:
        book.chose(chose(Way.WAIT, 1.0))
    book.drop(3)
    assert book.told(3, 2.0) is None and len(book) == 0
