"""The order in which idle things go: what would be kept wrongly if the arithmetic were off."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.memory.economy import (
    SPAN_TURNOVERS,
    FadingEconomy,
    Lru,
    Use,
    make_economy,
)
from lorry.server.memory.ghosts import Ghosts
from lorry.server.memory.pool import KvOwner, Pool

SPAN = 10.0


class Turning:
    """An economy whose pool's clock is moved by hand; its seconds are the instants given."""

    def __init__(self) -> None:
        self.now = 0.0
        self.economy = FadingEconomy(lambda: self.now, span_turnovers=SPAN)

    def used(self, *instants: float) -> Use:
        use = None
        for self.now in instants:
            use = self.economy.touched(use, self.now)
        assert use is not None
        return use


def decayed_need(instants_s: list[float], now_s: float) -> float:
    """The definition: what the logarithms stand for."""
    return sum(math.exp((at_s - now_s) / SPAN) for at_s in instants_s)


instants = st.lists(st.floats(0, 200), min_size=1, max_size=6).map(sorted)


@settings(max_examples=60, deadline=None)
@given(instants, instants, st.floats(1e-4, 10), st.floats(1e-4, 10))
def test_order_of_worths_is_that_of_decayed_need_times_cost(
    one: list[float], other: list[float], one_cost_s: float, other_cost_s: float
):
    """However much later one looks: a worth is never computed anew."""
    pool = Turning()
    worth = pool.economy.block_worth(pool.used(*one), recompute_s=one_cost_s)
    other_worth = pool.economy.block_worth(pool.used(*other), recompute_s=other_cost_s)
    for now_s in (200.0, 500.0):
        value = decayed_need(one, now_s) * one_cost_s
        other_value = decayed_need(other, now_s) * other_cost_s
        if not math.isclose(value, other_value, rel_tol=1e-9):
            assert (worth < other_worth) == (value < other_value)


def test_a_worth_is_finite_after_years_of_uptime():
    """A clock of years over a small span overflows any exponential."""
    pool = Turning()
    use = pool.used(3.0e8, 3.0e8 + SPAN)
    assert math.isfinite(pool.economy.adapter_worth(use, num_pages=3, reload_s=0.01))
    assert use.heat == pytest.approx(3.0e7 + 1 + math.log1p(math.exp(-1)), rel=1e-12)


def test_pages_and_seconds_of_an_adapter_weigh_against_each_other():
    pool = Turning()
    economy, use = pool.economy, pool.used(5.0)
    small = economy.adapter_worth(use, num_pages=4, reload_s=0.02)
    assert small == pytest.approx(economy.adapter_worth(use, num_pages=40, reload_s=0.2))
    assert small > economy.adapter_worth(use, num_pages=8, reload_s=0.02)
    assert small == pytest.approx(economy.block_worth(use, recompute_s=0.005))


def test_what_costs_nothing_to_bring_back_is_worth_little_and_still_a_number():
    """A server that has learnt no load yet says 0 seconds."""
    pool = Turning()
    economy, use = pool.economy, pool.used(5.0)
    worth = economy.adapter_worth(use, num_pages=4, reload_s=0.0)
    assert math.isfinite(worth) and worth < economy.block_worth(use, recompute_s=1e-6)


def test_lru_goes_by_the_end_of_the_last_use_and_by_nothing_else():
    lru = Lru()
    use = lru.touched(lru.touched(None, 1.0), 2.0)
    assert lru.block_worth(use, recompute_s=9.0) == 2.0
    use = lru.rested(use, 7.0)
    assert use.num_uses == 2
    assert lru.adapter_worth(use, num_pages=9, reload_s=9.0) == 7.0


def test_the_end_of_a_use_is_no_use():
    """A long answer would count as two."""
    pool = Turning()
    economy, use = pool.economy, pool.used(5.0)
    rested = economy.rested(use, 90.0)
    assert (rested.heat, rested.num_uses, rested.last_s) == (use.heat, 1, 90.0)


def test_make_economy_refuses_by_name_and_value():
    assert [make_economy(name).name for name in ("economy", "lru", "split")] == [
        "economy",
        "lru",
        "split",
    ]
    with pytest.raises(ValueError, match=r"'mru'.*economy, lru, split"):
        make_economy("mru")
    with pytest.raises(ValueError, match=r"span_turnovers is 0\.0"):
        make_economy("economy", span_turnovers=0.0)
    assert make_economy("economy", span_turnovers=3.0).params() == (("span_turnovers", 3.0),)


def test_a_pool_that_is_not_handed_out_makes_nothing_old():
    """An idle night would cool down what the morning asks for."""
    pool, lease = Pool(10), KvOwner(1)
    economy = make_economy("economy", lambda: pool.turnovers)
    before = economy.touched(None, 0.0)
    assert economy.touched(None, 9e9).heat == before.heat
    for _ in range(8):
        pool.lease(lease, 5)
        pool.release(lease)
    assert economy.touched(None, 9e9).heat == before.heat + 4.0 / SPAN_TURNOVERS


def test_a_block_that_comes_back_goes_on_with_its_uses():
    """What is asked for more seldom than the pool turns over would be new for ever."""
    ghosts, use = Ghosts(2), Use(1.0, 3, 5.0)
    for name in (b"a", b"b", b"c"):
        ghosts.remember(name, use)
    assert len(ghosts) == 2
    assert ghosts.recall(b"a") is None
    assert ghosts.recall(b"b") == use
    assert ghosts.recall(b"b") is None


def test_without_room_for_ghosts_none_is_remembered():
    ghosts = Ghosts(0)
    ghosts.remember(b"a", Use(1.0, 3, 5.0))
    assert len(ghosts) == 0
