"""What is worth having near: the order of wishes, and when they are over."""

import math
from dataclasses import replace

from lorry.server.memory.economy import make_economy
from lorry.server.memory.usage import UsageBook
from lorry.server.memory.wishes import MAX_HOST_WISHES, MAX_SHOWN, Wishes
from lorry.tests.fakes import make_card, make_key


class World:
    """Wishes, and who is in the pool."""

    def __init__(self, *, by_popularity: bool = True) -> None:
        self.near: set[str] = set()
        self.changed: list[str] = []
        self.book = UsageBook(make_economy("economy"))
        self.wishes = Wishes(
            self.book,
            worth=lambda usage: float(usage.num_requests),
            changed=lambda key: self.changed.append(key.name),
            by_popularity=by_popularity,
        )

    def ask(self, name: str, times: int) -> None:
        for now_s in range(times):
            self.book.asked(make_card(name), float(now_s), in_pool=False)

    def shown(self) -> list[tuple[str, float]]:
        shown = self.wishes.shown(lambda key: key.name in self.near)
        return [(wanted.card.key.name, wanted.worth) for wanted in shown]


def test_who_was_named_comes_before_who_is_popular():
    """An operator's pin would wait behind whatever happens to be asked for often."""
    world = World()
    world.ask("seldom", 1)
    world.ask("often", 9)
    world.wishes.ask(make_card("asked"), 20.0)
    world.wishes.pin(make_card("pinned"))
    assert world.shown()[:2] == [("pinned", math.inf), ("asked", math.inf)]
    assert world.shown()[2:] == [("often", 9.0), ("seldom", 1.0)]
    assert world.changed == ["asked", "pinned"]


def test_nobody_is_shown_twice_or_beside_too_many():
    """A plan would load one adapter twice, or look through all that were ever asked for."""
    world = World()
    for number in range(3 * MAX_SHOWN):
        world.ask(f"a{number}", 1)
    world.wishes.ask(make_card("a0"), 20.0)
    world.wishes.pin(make_card("a0"))
    names = [name for name, _ in world.shown()]
    assert names[0] == "a0" and len(set(names)) == len(names) == 1 + MAX_SHOWN


def test_wishes_that_cannot_come_true_hide_nobody_elses():
    """Four pins of a tenant at its cap were all that any plan saw: no one's prefetch ever came."""
    world = World()
    world.ask("popular", 1)
    for number in range(3 * MAX_SHOWN):
        world.wishes.pin(make_card(f"pin{number}"))
        world.wishes.ask(make_card(f"asked{number}"), 20.0)
    card = make_card("other")
    world.wishes.ask(replace(card, key=replace(card.key, tenant="other")), 20.0)
    names = [name for name, _ in world.shown()]
    assert "other" in names and "asked0" in names
    assert len(names) == 1 + 3 * MAX_SHOWN


def test_a_prefetch_is_once_and_a_pin_for_good():
    """A prefetched adapter would come back for ever, or a pinned one stay away once evicted."""
    world = World(by_popularity=False)
    world.wishes.ask(make_card("asked"), 1.0)
    world.wishes.pin(make_card("pinned"))
    for name in ("asked", "pinned"):
        world.near.add(name)
        world.wishes.arrived(make_key(name))
    assert world.shown() == []
    world.near.clear()
    assert world.shown() == [("pinned", math.inf)]
    world.wishes.unpin(make_key("pinned"))
    assert world.shown() == []


def test_a_prefetch_of_what_is_in_the_pool_is_over_at_once():
    """It would be loaded again when it is evicted an hour later."""
    world = World(by_popularity=False)
    world.near.add("a")
    world.wishes.ask(make_card(), 1.0)
    assert world.shown() == []
    world.near.clear()
    assert world.shown() == []


def test_a_prefetch_counts_as_a_use_and_as_no_request():
    """It would be the first to be evicted, or spoil the hit rate."""
    world = World()
    world.wishes.ask(make_card(), 1.0)
    usage = world.book.of(make_key())
    assert usage is not None
    assert (usage.use.num_uses, usage.num_requests) == (1, 0)


def test_what_could_not_be_loaded_waits_until_somebody_asks():
    """A corrupt file would be read at every step for as long as the link is idle."""
    world = World()
    world.ask("a", 2)
    world.wishes.failed(make_key())
    assert world.shown() == []
    world.wishes.ask(make_card(), 1.0)
    assert world.shown() == [("a", math.inf)]
    world.wishes.failed(make_key())
    world.wishes.arrived(make_key())  # a request had it loaded all the same
    assert world.shown() == [("a", 2.0)]


def test_the_deleted_are_wished_for_no_more():
    """A deleted adapter would be loaded, and its files could never go."""
    world = World(by_popularity=False)
    card = make_card()
    for wish in (world.wishes.pin, world.wishes.ask_for_host, lambda c: world.wishes.ask(c, 1.0)):
        wish(card)
    world.wishes.forget(card.key)
    assert world.shown() == []
    assert world.wishes.for_host(lambda key: False) == ()


def test_wishes_for_the_host_end_when_it_is_there_and_have_a_bound():
    """A list of ten thousand would be kept, and told to the link, for ever."""
    world = World()
    for number in range(MAX_HOST_WISHES + 1):
        world.wishes.ask_for_host(make_card(f"a{number}"))
    waiting = world.wishes.for_host(lambda key: key.name == "a2")
    assert [card.key.name for card in waiting][:2] == ["a1", "a3"]
    assert len(waiting) == MAX_HOST_WISHES - 1
