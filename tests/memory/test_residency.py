"""Residency against a dict model, and its single rules."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorry.server.errors import InternalError
from lorry.server.memory.economy import make_economy
from lorry.server.memory.link_records import LayerLanded, Loaded, LoadFailed
from lorry.server.memory.pool import AdapterOwner, KvOwner, Pool
from lorry.server.memory.residency import Residency
from lorry.server.memory.residency_records import Arrived, Broken, Departed
from lorry.server.scheduling.prefix_view import NO_PREFIXES
from lorry.server.scheduling.records import StepPlan
from lorry.tests.fakes import NUM_LAYERS, FakeLink, make_card, make_key, make_layout
from lorry.tests.memory_builders import bring, load_plan, make_residency

NAMES = ["foo", "foo-2", "bar", "baz", "qux"]
PAGES = {name: 1 + place for place, name in enumerate(NAMES)}
MAX_SLOTS = 3
PICK = st.integers(0, 99)


@dataclass
class Known:
    """The model's idea of one adapter."""

    adapter_id: int
    users: int = 0
    place: str = "absent"
    doomed: bool = False
    layers: int = 0
    load_id: int = -1


class ResidencyAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.link = Pool(10), FakeLink()
        self.residency = Residency(
            self.pool, self.link, max_slots=MAX_SLOTS, economy=make_economy("economy")
        )
        self.known: dict[str, Known] = {}
        self.attached: dict[int, str] = {}  # slot -> name, as the engine would hold it
        self.over: list[int] = []  # load ids that have ended
        self.now_s = 0.0

    def named(self, place: str) -> list[str]:
        return [name for name, adapter in self.known.items() if adapter.place == place]

    def apply(self, plan: StepPlan) -> None:
        self.pool.apply(plan)
        orders = self.residency.apply(plan).orders
        assert [(o.adapter_id, len(o.pages)) for o in orders] == [
            (load.adapter_id, load.num_pages) for load in plan.loads
        ]
        for order in orders:
            self.known[order.card.key.name].load_id = order.load_id
        for name in [n for n, a in self.known.items() if a.place == "absent" and not a.users]:
            del self.known[name]

    def expect_departed(self, *names: str, attached: bool, released: bool) -> None:
        """What the engine must now detach and announce."""
        departed = self.residency.take_departed()
        assert sorted(d.key.name for d in departed) == sorted(names)
        for gone in departed:
            assert gone.released == released
            assert (gone.slot >= 0) == attached
            if attached:
                assert self.attached.pop(gone.slot) == gone.key.name

    @rule(pick=PICK)
    def request_comes(self, pick):
        name = NAMES[pick % len(NAMES)]
        adapter_id = self.residency.intern(make_card(name, num_pages=PAGES[name]))
        known = self.known.setdefault(name, Known(adapter_id))
        assert known.adapter_id == adapter_id
        self.residency.use(adapter_id, 0.0)
        known.users += 1

    @rule(pick=PICK)
    def refused_request_interns_only(self, pick):
        name = NAMES[pick % len(NAMES)]
        adapter_id = self.residency.intern(make_card(name, num_pages=PAGES[name]))
        self.known.setdefault(name, Known(adapter_id))

    @precondition(lambda self: any(a.users for a in self.known.values()))
    @rule(pick=PICK)
    def request_ends(self, pick):
        used = [name for name, adapter in self.known.items() if adapter.users]
        name = used[pick % len(used)]
        known = self.known[name]
        self.residency.leave(known.adapter_id, self.now_s)
        known.users -= 1
        self.settle(name)

    @rule(pick=PICK)
    def is_deleted(self, pick):
        name = NAMES[pick % len(NAMES)]
        self.residency.doom(make_key(name))
        if name in self.known:
            self.known[name].doomed = True
            self.settle(name)
        else:
            self.expect_departed(name, attached=False, released=True)

    def settle(self, name: str) -> None:
        known = self.known[name]
        if known.doomed and not known.users and known.place != "loading":
            self.expect_departed(name, attached=known.place == "resident", released=True)
            del self.known[name]
        else:
            self.expect_departed(attached=False, released=False)

    @rule(pick=PICK)
    def step_loads(self, pick):
        absent = [n for n in self.named("absent") if PAGES[n] <= self.pool.num_free]
        busy = len(self.named("loading")) + len(self.named("resident"))
        if not absent or busy >= MAX_SLOTS:
            return self.apply(StepPlan())
        name = absent[pick % len(absent)]
        known = self.known[name]
        known.place, known.layers = "loading", 0
        return self.apply(load_plan((known.adapter_id, PAGES[name])))

    @precondition(lambda self: self.named("resident"))
    @rule(pick=PICK)
    def step_evicts(self, pick):
        resident = self.named("resident")
        name = resident[pick % len(resident)]
        known = self.known[name]
        known.place = "absent"
        self.apply(load_plan(evict=[known.adapter_id]))
        self.expect_departed(name, attached=True, released=False)

    @precondition(lambda self: self.link.orders)
    @rule(pick=PICK, fails=st.booleans())
    def link_moves(self, pick, fails):
        load_id = sorted(self.link.orders)[pick % len(self.link.orders)]
        name = self.link.orders[load_id].card.key.name
        known = self.known[name]
        if fails:
            self.link.fail(load_id)
        elif self.link.land_layer(load_id):
            known.layers += 1
        news = self.residency.drain(self.link.poll(), self.now_s)
        if load_id in self.link.orders:
            assert news == ()
            return
        self.over.append(load_id)
        leaves = known.doomed and not known.users
        known.place = "absent" if fails or leaves else "resident"
        self.expect_departed(*[name] * leaves, attached=False, released=True)
        if leaves:
            del self.known[name]
            assert news == ()
        else:
            (told,) = news
            assert isinstance(told, Broken if fails else Arrived)
            assert told.adapter_id == known.adapter_id
            if isinstance(told, Arrived):
                assert told.slot not in self.attached, "an occupied slot is given again"
                self.attached[told.slot] = name

    @precondition(lambda self: self.over)
    @rule(pick=PICK, kind=st.integers(0, 2))
    def stale_event(self, pick, kind):
        load_id = self.over[pick % len(self.over)]
        event = (
            LayerLanded(load_id, 9),
            Loaded(load_id, make_layout()),
            LoadFailed(load_id, ValueError("late")),
        )[kind]
        assert self.residency.drain([event], self.now_s) == ()

    @invariant()
    def agrees(self):
        self.now_s += 1.0
        self.pool.audit()
        view = self.residency.view(4, NO_PREFIXES)
        held = {n: a for n, a in self.known.items() if a.place != "absent"}
        assert {a.adapter_id: (PAGES[n], a.place == "resident") for n, a in held.items()} == {
            adapter_id: (seen.num_pages, seen.resident)
            for adapter_id, seen in view.adapters.items()
        }
        assert view.num_free_slots == MAX_SLOTS - len(held)
        assert self.pool.stats().num_adapter == sum(PAGES[name] for name in held)
        assert len({a.adapter_id for a in self.known.values()}) == len(self.known)
        assert all(a.adapter_id < len(NAMES) for a in self.known.values()), "handles are reused"
        for known in self.known.values():
            for layer in range(NUM_LAYERS):
                there = known.place == "resident" or (
                    known.place == "loading" and layer < known.layers
                )
                assert self.residency.landed(known.adapter_id, layer) == there
        assert {n for n, a in self.known.items() if a.place == "resident"} == set(
            self.attached.values()
        )
        assert {(s.key.name, s.num_users, s.loading) for s in self.residency.stats()} == {
            (n, a.users, a.place == "loading") for n, a in held.items()
        }


ResidencyAgainstDict.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestResidencyAgainstDict = ResidencyAgainstDict.TestCase


def test_a_thousand_adapters_leave_nothing_behind():
    """Long uptime with many adapters would leak handles (anchors, item 8)."""
    residency, _, _ = make_residency()
    for number in range(1000):
        adapter_id = residency.intern(make_card(f"a{number}"))
        residency.use(adapter_id, 0.0)
        residency.leave(adapter_id, 0.0)
        residency.apply(StepPlan())
        assert adapter_id == 0
    with pytest.raises(InternalError, match="handle 0"):
        residency.is_resident(0)


def test_an_evicted_adapter_without_users_is_forgotten():
    """Handles of adapters that were resident once would pile up."""
    residency, pool, link = make_residency()
    adapter_id = bring(residency, pool, link)
    residency.leave(adapter_id, 2.0)
    plan = load_plan(evict=[adapter_id])
    pool.apply(plan)
    residency.apply(plan)
    with pytest.raises(InternalError, match=f"handle {adapter_id}"):
        residency.is_resident(adapter_id)


def test_a_new_version_is_another_adapter():
    """New content under an old name would meet old weights (anchors, item 6)."""
    residency, pool, link = make_residency()
    old = bring(residency, pool, link)
    new = residency.intern(make_card(version=2))
    residency.use(new, 0.0)
    assert new != old
    assert not residency.is_resident(new)
    residency.doom(make_key())
    assert residency.is_resident(old), "a running request finishes on its version"
    residency.leave(old, 2.0)
    (gone,) = residency.take_departed()
    assert gone == Departed(make_key(), slot=0, released=True)
    assert pool.num_free == 10


def test_a_doomed_load_is_let_go_when_it_ends():
    """Pages would be freed while the link still writes them."""
    residency, pool, link = make_residency()
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 0.0)
    plan = load_plan((adapter_id, 2))
    pool.apply(plan)
    (order,) = residency.apply(plan).orders
    residency.leave(adapter_id, 0.0)
    residency.doom(order.card.key)
    assert pool.num_free == 8
    assert residency.take_departed() == ()
    link.finish(order.load_id)
    assert residency.drain(link.poll(), 1.0) == ()
    assert pool.num_free == 10
    assert residency.take_departed() == (Departed(order.card.key, -1, released=True),)


def test_a_failed_load_can_be_tried_again():
    """One bad read would make an adapter unusable until a restart."""
    residency, pool, link = make_residency()
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 0.0)
    plan = load_plan((adapter_id, 2))
    pool.apply(plan)
    (first,) = residency.apply(plan).orders
    link.fail(first.load_id)
    (told,) = residency.drain(link.poll(), 1.0)
    assert isinstance(told, Broken)
    assert "no a" in str(told.error)
    assert pool.num_free == 10
    pool.apply(plan)
    (second,) = residency.apply(plan).orders
    assert second.load_id != first.load_id


def test_last_use_is_arrival_or_the_last_end():
    """The least recently used one would be somebody else."""
    residency, pool, link = make_residency()
    adapter_id = bring(residency, pool, link)
    assert residency.view(4, NO_PREFIXES).adapters[adapter_id].last_used_s == 1.0
    residency.leave(adapter_id, 7.0)
    assert residency.view(4, NO_PREFIXES).adapters[adapter_id].last_used_s == 7.0


@pytest.mark.parametrize("lie", ["evicts-loading", "loads-resident", "no-slot", "wrong-size"])
def test_a_plan_that_lies_is_a_bug_with_a_name(lie):
    """A wrong plan would read as a wrong answer much later."""
    residency, pool, link = make_residency(max_slots=1)
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 0.0)
    if lie == "wrong-size":
        plan, words = load_plan((adapter_id, 3)), "of 2 pages into 3"
    elif lie == "loads-resident":
        assert bring(residency, pool, link) == adapter_id
        plan, words = load_plan((adapter_id, 2)), "Place.RESIDENT"
        residency_plan = plan
        with pytest.raises(InternalError, match=words):
            residency.apply(residency_plan)
        return
    else:
        load = load_plan((adapter_id, 2))
        pool.apply(load)
        residency.apply(load)
        other = residency.intern(make_card("other"))
        plan = load_plan((other, 2)) if lie == "no-slot" else load_plan(evict=[adapter_id])
        words = "no slot is free" if lie == "no-slot" else "Place.LOADING"
    pool.apply(plan)
    with pytest.raises(InternalError, match=words):
        residency.apply(plan)


def test_leaving_twice_is_a_bug():
    """A user count below zero would let a running adapter go."""
    residency, _, _ = make_residency()
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 0.0)
    residency.leave(adapter_id, 0.0)
    with pytest.raises(InternalError, match="no users"):
        residency.leave(adapter_id, 0.0)


def test_orders_carry_pages_of_the_pool_and_a_free_slot():
    """The link would write over another adapter, or over KV."""
    residency, pool, link = make_residency()
    pool.lease(KvOwner(0), 3)
    first = bring(residency, pool, link, "one")
    second = bring(residency, pool, link, "two")
    assert {residency.slot_of(first), residency.slot_of(second)} == {0, 1}
    assert pool.pages_of(AdapterOwner(first)) == (3, 4)
    assert residency.key_of(second) == make_key("two")
