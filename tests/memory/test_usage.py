"""The usage book: what prefetching and statistics would get wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.memory.economy import Lru, make_economy
from lorry.server.memory.usage import AdapterUsage, UsageBook

SPAN = 10.0


class Book(UsageBook):
    """A second of its instants is a turnover of the pool."""

    def __init__(self, max_adapters: int = 20) -> None:
        self.now_s = 0.0
        economy = make_economy("economy", lambda: self.now_s, span_turnovers=SPAN)
        super().__init__(economy, max_adapters=max_adapters)

    def asked(self, card: AdapterCard, now_s: float, *, in_pool: bool) -> AdapterUsage:
        self.now_s = now_s
        return super().asked(card, now_s, in_pool=in_pool)


def card_of(name: str, *, version: int = 1) -> AdapterCard:
    return AdapterCard(
        key=AdapterKey("default", name, version, f"hash-{name}-{version}"),
        size_bytes=1,
        max_rank=8,
        num_pages=2,
        weight_bytes=1,
        target_modules=(),
        created_unix_s=0.0,
        rounding_error=0.0,
        notes=(),
        image_path=Path(),
    )


def names(book: UsageBook, num: int) -> list[str]:
    return [usage.card.key.name for usage in book.hottest(num)]


def test_counts_what_became_of_an_adapter():
    book, card = Book(), card_of("a")
    assert math.isnan(book.asked(card, 1.0, in_pool=False).mean_load_s)
    book.loaded(card.key, seconds=0.5, read_s=0.2)
    book.asked(card, 2.0, in_pool=True)
    book.loaded(card.key, seconds=0.1, read_s=0.0)
    usage = book.of(card.key)
    assert usage is not None
    assert (usage.num_requests, usage.num_pool_hits) == (2, 1)
    assert (usage.num_loads, usage.num_reads) == (2, 1)
    assert usage.mean_load_s == pytest.approx(0.3)
    assert usage.use.num_uses == 2


def test_hottest_is_by_need_not_by_the_last_use():
    book = Book()
    for now_s in (1.0, 2.0, 3.0):
        book.asked(card_of("often"), now_s, in_pool=False)
    book.asked(card_of("late"), 4.0, in_pool=False)
    assert names(book, 5) == ["often", "late"]
    assert names(book, 1) == ["often"]
    book.asked(card_of("late"), 90.0, in_pool=False)
    assert names(book, 5) == ["late", "often"]


def test_hottest_leaves_out_whom_it_is_told_to():
    """Otherwise what is in the pool already would fill the list of what to fetch."""
    book = Book()
    for at, name in enumerate("abcd"):
        book.asked(card_of(name), float(at), in_pool=False)
    found = book.hottest(2, skip=lambda key: key.name in "dc")
    assert [usage.card.key.name for usage in found] == ["b", "a"]


def test_the_coldest_is_forgotten_and_the_book_stays_small():
    book = Book(max_adapters=3)
    for at, name in enumerate(("a", "a", "b", "c", "d")):
        book.asked(card_of(name), float(at), in_pool=False)
    assert len(book) == 3
    assert book.of(card_of("b").key) is None and book.of(card_of("a").key) is not None


def test_a_deleted_adapter_leaves_and_its_late_load_is_nobodys():
    book, old, new = Book(), card_of("a"), card_of("a", version=2)
    book.asked(old, 1.0, in_pool=False)
    book.asked(new, 2.0, in_pool=False)
    book.forget(old.key)
    book.forget(old.key)
    book.loaded(old.key, seconds=1.0, read_s=0.0)
    assert book.rested(old.key, 3.0) is None
    assert book.of(old.key) is None and names(book, 5) == ["a"] and len(book) == 1


def test_a_rest_moves_an_adapter_in_the_order_of_lru():
    book = UsageBook(Lru())
    book.asked(card_of("a"), 1.0, in_pool=False)
    book.asked(card_of("b"), 2.0, in_pool=False)
    usage = book.rested(card_of("a").key, 3.0)
    assert usage is not None and usage.use.last_s == 3.0
    assert names(book, 2) == ["a", "b"]


def test_the_order_holds_under_any_mix():
    """The sorted list and the table say the same after everything that can happen."""
    rng, book = random.Random(5), Book(max_adapters=20)
    for step in range(600):
        card = card_of(f"n{rng.randrange(30)}")
        match rng.randrange(6):
            case 0:
                book.forget(card.key)
            case 1:
                book.rested(card.key, float(step))
            case 2:
                book.loaded(card.key, seconds=0.1, read_s=0.0)
            case _:
                book.asked(replace(card, notes=(str(step),)), float(step // 2), in_pool=False)
        found = book.hottest(100)
        assert len(found) == len(book) <= 20
        heats = [usage.use.heat for usage in found]
        assert heats == sorted(heats, reverse=True)


def test_a_book_for_nobody_is_refused():
    with pytest.raises(ValueError, match=r"max_adapters is 0"):
        Book(max_adapters=0)
