"""A few episodes of `make churn`, and that its device sees what it is made to see."""

from __future__ import annotations

from array import array

import pytest

from lorry.adapters.image import ImageLayout
from lorry.bench.memory_soak_device import BASE, Device, MemoryBroken, Pages, answer
from lorry.bench.memory_soak_life import Episode
from lorry.server.execution.batch import StepRow
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.fakes import make_card

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_lives_in_too_little_memory_are_answered_right(seed):
    """Whatever breaks in pool, residency, prefix cache or planner is met by `make churn` first."""
    totals = Episode(seed).run(100)
    assert totals.finished and totals.answer_tokens and totals.operations >= 100


def make_row(row: int, ids: list[int], pages: list[int], **overrides) -> StepRow:
    settings = {
        "row": row,
        "token_ids": ids,
        "num_tokens": len(ids),
        "start": 0,
        "pages": array("q", pages),
        "adapter_slot": -1,
        "sample": True,
        "sampling": SamplingParams(),
        "known_ids": ids,
        "num_prompt": len(ids),
    }
    return StepRow(**{**settings, **overrides})


def make_device() -> Device:
    """Pages of two tokens; an adapter in pages 8 and 9, slot 0."""
    pages = Pages()
    pages.write_image(make_card("a"), [8, 9])
    device = Device(pages, tokens_per_page=2)
    device.attach(0, ImageLayout(2, 1, (), (2,), 0), [8, 9])
    return device


def test_the_device_answers_what_a_request_gets_alone():
    """The soak would compare answers with something else."""
    device = make_device()
    ids = [1, 2, 3]
    (first,) = answer(BASE, ids, 1, ())
    assert device.run([make_row(0, ids, [0, 1])]).tokens == {0: first}
    next_row = make_row(0, [first], [0, 1], start=3, known_ids=[*ids, first])
    assert device.run([next_row]).tokens == {0: answer(BASE, ids, 2, ())[1]}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (make_row(1, [4], [0, 2], start=2, known_ids=[1, 9, 4]), "somebody else's KV in page 0"),
        (make_row(1, [4], [5, 2], start=2, known_ids=[1, 2, 4]), "somebody else's KV in page 5"),
        (make_row(1, [4], [0, 2], start=2, known_ids=[1, 2, 4], adapter_slot=0), "KV in page 0"),
        (make_row(1, [4], [0, 9], start=2, known_ids=[1, 2, 4]), "over an adapter's page 9"),
    ],
    ids=["other-tokens", "freed", "other-adapter", "over-weights"],
)
def test_the_device_sees_each_kind_of_wrong_page(second, words):
    """A fault of the memory rooms would pass unseen."""
    device = make_device()
    device.run([make_row(0, [1, 2, 3], [0, 1])])
    with pytest.raises(MemoryBroken, match=words):
        device.run([second])


def test_the_device_sees_pages_that_are_taken_or_shared_too_early():
    """Under a step on its way, or written while others read."""
    device = make_device()
    device.launch([make_row(0, [1, 2], [0])])
    with pytest.raises(MemoryBroken, match="from a step on its way"):
        device.pages.poison([0])
    with pytest.raises(MemoryBroken, match="that others read"):
        device.run([make_row(0, [1, 2], [3]), make_row(1, [1, 2], [3])])
    with pytest.raises(MemoryBroken, match="which is in use"):
        device.pages.write_image(make_card("b"), [9, 10])
