"""Loads that may be used while they are under way: who is told, and who lets go of the image."""

import random
from collections import Counter

import pytest
import torch

from lorry.adapters.host_tier import HeldImage
from lorry.server.memory.cold import ColdFacts
from lorry.server.memory.economy import make_economy
from lorry.server.memory.link_records import LoadCancelled, LoadFailed
from lorry.server.memory.pool import Pool
from lorry.server.memory.residency import Residency
from lorry.server.memory.residency_records import Arrived, Broken, Departed, Opening
from lorry.server.scheduling.prefix_view import NO_PREFIXES
from lorry.server.scheduling.records import StepPlan
from lorry.server.scheduling.starts import NO_COLD_VIEW, StartPrices, Way
from lorry.tests.cold_life_builders import make_model
from lorry.tests.fakes import FakeLink, make_card, make_key, make_layout
from lorry.tests.memory_builders import load_plan


def make_image(*, is_loose: bool = False) -> HeldImage:
    return HeldImage(make_layout(), torch.zeros(2, 4), (0, 1), is_loose=is_loose)


class Rooms:
    """A residency over a fake link; adapters named in `in_host` are open at once."""

    def __init__(self, *in_host: str, tells: bool = True, helps: bool = True) -> None:
        self.pool, self.link, self.helps = Pool(12), FakeLink(), helps
        self.link.images = {name: make_image() for name in in_host}
        facts = ColdFacts(
            model=lambda: make_model(load_s_per_byte=0.01, read_s_per_byte=0.05),
            in_host=lambda key: key.name in in_host,
            can_help=lambda card: self.helps and card.key.name != "head",
        )
        self.residency = Residency(
            self.pool,
            self.link,
            max_slots=4,
            economy=make_economy("economy"),
            cold=facts if tells else None,
        )

    def use(self, name: str = "a") -> int:
        adapter_id = self.residency.intern(make_card(name))
        self.residency.use(adapter_id, 0.0)
        return adapter_id

    def load(self, *adapter_ids: int):
        plan = load_plan(*[(adapter_id, 2) for adapter_id in adapter_ids])
        self.pool.apply(plan)
        return self.residency.apply(plan)

    def drain(self, now_s: float = 1.0):
        return self.residency.drain(self.link.poll(), now_s)

    def on_its_way(self, adapter_id: int, now_s: float = 0.0):
        return self.residency.view(4, NO_PREFIXES).cold.on_its_way(adapter_id, 100, now_s)


def test_what_is_in_host_memory_is_open_with_its_order():
    """A step's delay would cost what a cold start gains."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    assert rooms.on_its_way(adapter_id).is_open, "foretold before it is ordered"
    applied = rooms.load(adapter_id)
    (order,) = applied.orders
    (opening,) = applied.openings
    assert opening == Opening(adapter_id, order.slot, order.pages, rooms.link.images["a"])
    assert rooms.on_its_way(adapter_id).is_open and rooms.on_its_way(adapter_id).can_help
    assert rooms.link.held == [opening.image], "whoever hears of it lets go"


def test_what_is_on_disk_is_open_once_its_file_is():
    """It would wait for its whole image although its layers flow."""
    rooms = Rooms()
    adapter_id = rooms.use()
    assert not rooms.on_its_way(adapter_id).is_open
    (order,) = rooms.load(adapter_id).orders
    assert not rooms.on_its_way(adapter_id).is_open
    image = make_image()
    rooms.link.open(order.load_id, image)
    assert rooms.drain() == (Opening(adapter_id, order.slot, order.pages, image),)
    assert rooms.on_its_way(adapter_id, 1.0).is_open
    rooms.link.finish(order.load_id)
    (arrived,) = rooms.drain()
    assert isinstance(arrived, Arrived)
    assert rooms.residency.take_departed() == (), "it stays where it was attached cold"


@pytest.mark.parametrize("ends", ["loaded", "failed", "cancelled"])
def test_nobody_hears_of_an_opening_whose_load_is_over(ends):
    """Its slot would be attached cold when it is somebody else's."""
    rooms = Rooms()
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    rooms.link.open(order.load_id, make_image())
    if ends == "loaded":
        rooms.link.finish(order.load_id)
    elif ends == "failed":
        rooms.link.fail(order.load_id)
    else:
        rooms.link.events.append(LoadFailed(order.load_id, LoadCancelled("nobody")))
    news = rooms.drain()
    assert not any(isinstance(item, Opening) for item in news)
    assert rooms.link.held == []
    assert rooms.residency.take_departed() == ()
    rooms.link.open(order.load_id, make_image())
    assert rooms.drain() == () and rooms.link.held == [], "nor later"


@pytest.mark.parametrize("ends", ["failed", "cancelled", "doomed"])
def test_an_open_load_that_does_not_arrive_is_to_be_detached(ends):
    """A slot would stay attached to pages that are somebody else's."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    if ends == "failed":
        rooms.link.fail(order.load_id)
        (told,) = rooms.drain()
        assert isinstance(told, Broken)
    elif ends == "cancelled":
        rooms.residency.leave(adapter_id, 1.0)
        assert rooms.link.cancelled == [order.load_id]
        rooms.link.events.append(LoadFailed(order.load_id, LoadCancelled("nobody")))
        assert rooms.drain() == ()
    else:
        rooms.residency.doom(make_key())
        rooms.residency.leave(adapter_id, 1.0)
        rooms.link.finish(order.load_id)
        assert rooms.drain() == ()
    gone = Departed(make_key(), order.slot, released=ends == "doomed")
    assert rooms.residency.take_departed() == (gone,)
    assert rooms.pool.num_free == 12


def test_a_load_that_was_never_announced_is_not_to_be_detached():
    """The engine would detach a slot that it never attached."""
    rooms = Rooms()
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    rooms.link.fail(order.load_id)
    rooms.drain()
    assert rooms.residency.take_departed() == ()


def test_a_load_that_is_shut_is_open_to_nobody():
    """Rows would run on a slot that could not be attached."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    rooms.residency.shut(adapter_id)
    assert not rooms.on_its_way(adapter_id).is_open
    rooms.link.fail(order.load_id)
    rooms.drain()
    assert rooms.residency.take_departed() == ()


def test_nobody_begins_on_a_load_that_was_given_up():
    """A request that comes between a cancel and its end would run, and its adapter depart."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    rooms.residency.leave(adapter_id, 1.0)
    assert rooms.use() == adapter_id
    assert not rooms.on_its_way(adapter_id).is_open and not rooms.on_its_way(adapter_id).can_help
    rooms.link.events.append(LoadFailed(order.load_id, LoadCancelled("nobody")))
    rooms.drain()
    assert rooms.on_its_way(adapter_id).is_open, "ordered anew it is as any other"
    (again,) = rooms.load(adapter_id).orders
    assert again.load_id != order.load_id and rooms.on_its_way(adapter_id).is_open


def test_helpers_that_failed_an_adapter_are_asked_again_for_its_next_load():
    """It would be lost at every step; or never be helped with again."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    (order,) = rooms.load(adapter_id).orders
    rooms.residency.no_help(adapter_id)
    assert rooms.on_its_way(adapter_id).is_open and not rooms.on_its_way(adapter_id).can_help
    rooms.link.fail(order.load_id)
    rooms.drain()
    assert rooms.on_its_way(adapter_id).can_help
    rooms.load(adapter_id)
    assert rooms.on_its_way(adapter_id).can_help


def test_while_no_helper_is_up_nobody_is_asked_for_a_load_under_way():
    """A step would wait for its layers in their stead, and everyone in it."""
    rooms = Rooms("a")
    adapter_id = rooms.use()
    rooms.load(adapter_id)
    rooms.helps = False
    assert rooms.on_its_way(adapter_id).is_open and not rooms.on_its_way(adapter_id).can_help
    rooms.helps = True
    assert rooms.on_its_way(adapter_id).can_help, "one is started again"


def test_helpers_are_not_asked_for_what_they_cannot_see():
    """They see the slab alone, and no head."""
    rooms = Rooms("a", "head")
    assert not rooms.on_its_way(rooms.use("head")).can_help
    rooms.link.images["a"] = make_image(is_loose=True)
    adapter_id = rooms.use()
    rooms.load(adapter_id)
    assert rooms.on_its_way(adapter_id).is_open and not rooms.on_its_way(adapter_id).can_help
    nobody = Rooms("a", helps=False)
    assert not nobody.on_its_way(nobody.use()).can_help


def test_where_nobody_begins_cold_images_are_let_go_at_once():
    """A server that always waits would hold every image it loads."""
    rooms = Rooms("a", tells=False)
    adapter_id = rooms.use()
    applied = rooms.load(adapter_id)
    assert applied.openings == () and rooms.link.held == []
    rooms.link.open(applied.orders[0].load_id, make_image())
    assert rooms.drain() == () and rooms.link.held == []
    assert rooms.residency.view(4, NO_PREFIXES).cold is NO_COLD_VIEW


def test_loads_are_foretold_by_their_bytes_and_the_queue():
    """The choice would be made on a link that is always free."""
    rooms = Rooms("a")
    num_bytes = make_card().weight_bytes
    first, second = rooms.use(), rooms.use("b")
    rooms.load(first)
    seen = rooms.on_its_way(first)
    assert (seen.begun_s, seen.landed_s) == pytest.approx((0.0, 0.01 * num_bytes))
    disk = rooms.on_its_way(second)
    assert disk.held_s == pytest.approx(0.05 * 100)
    assert disk.landed_s == pytest.approx(max(0.01 * num_bytes + 0.01 * 100, 0.05 * 100))
    prices = StartPrices(ways=frozenset({Way.STREAM}))
    assert rooms.residency.view(4, NO_PREFIXES, prices).prices is prices


@pytest.mark.parametrize("seed", range(6))
def test_every_image_is_let_go_and_every_slot_detached_once(seed):
    """Over long lives host memory would fill with images that nobody uses any more."""
    rooms, rng = Rooms("a", "b"), random.Random(seed)
    attached, seen = dict[int, HeldImage | None](), Counter[str]()
    opened = set[int]()

    def hear(news) -> None:
        for gone in rooms.residency.take_departed():
            if gone.slot >= 0:
                image = attached.pop(gone.slot)
                if image is not None:
                    rooms.link.let_go(image)
        for item in news:
            seen[type(item).__name__] += 1
            if isinstance(item, Opening):
                assert item.slot not in attached
                attached[item.slot] = item.image
            elif isinstance(item, Arrived):
                if (image := attached.get(item.slot)) is not None:
                    rooms.link.let_go(image)
                attached[item.slot] = None

    users = list[int]()
    for step in range(400):
        kind = rng.randrange(7)
        loads = list(rooms.link.orders)
        if kind == 0 and len(users) < 4:
            users.append(rooms.use(rng.choice("abcd")))
        elif kind == 1 and users:
            rooms.residency.leave(users.pop(rng.randrange(len(users))), float(step))
        elif kind == 2 and loads:
            order = rooms.link.orders[rng.choice(loads)]
            if order.card.key.name in "cd" and order.load_id not in opened:
                opened.add(order.load_id)
                rooms.link.open(order.load_id, make_image())
        elif kind == 3 and loads:
            rng.choice([rooms.link.finish, rooms.link.fail])(rng.choice(loads))
        elif kind == 4:
            rooms.residency.doom(make_key(rng.choice("abcd")))
        elif kind == 5:
            hear(rooms.drain(float(step)))
        else:
            absent = [i for i in set(users) if rooms.residency.absent_card(i) is not None]
            wanted = absent[:1] if rooms.pool.num_free >= 2 else []
            hear(rooms.load(*wanted).openings)
        hear(())
    for adapter_id in users:
        rooms.residency.leave(adapter_id, 400.0)
    for load_id in list(rooms.link.orders):
        rooms.link.fail(load_id)
    hear(rooms.drain(401.0))
    rooms.residency.apply(StepPlan())
    assert rooms.link.held == [image for image in attached.values() if image is not None] == []
    assert seen["Opening"] > 10 and seen["Arrived"] > 5 and seen["Broken"] > 2
    held = sum(one.num_pages for one in rooms.residency.stats())
    assert rooms.pool.num_free == 12 - held
    rooms.pool.audit()
