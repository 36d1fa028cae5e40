"""Which adapter a request asks for, and what rank it has."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.pools import POOLS, draw_gaps_of, pool_shares
from lorry.bench.workload.popularity import (
    Distinct,
    Popularity,
    PowerLaw,
    Shifting,
    Uniform,
    Zipf,
    draw_adapters,
    steady_weights,
)
from lorry.bench.workload.ranks import MIXES, RankMix, deal_ranks, fixed
from lorry.tests.workload_builders import share_agrees

COUNT = 50_000


def draw(popularity: Popularity, *, num_adapters: int = 200, count: int = COUNT, seed: int = 5):
    instants_s = np.arange(count) * 0.01
    return draw_adapters(
        popularity, np.random.default_rng(seed), num_adapters=num_adapters, instants_s=instants_s
    )


@pytest.mark.parametrize("popularity", [Uniform(), Zipf(1.0), Zipf(0.0), PowerLaw(0.3)])
def test_each_adapter_gets_its_share(popularity: Popularity) -> None:
    adapters, weights = draw(popularity)
    counts = np.bincount(adapters, minlength=200)
    assert weights.sum() == pytest.approx(1.0)
    assert (np.diff(weights) <= 1e-12).all()
    for count, weight in zip(counts, weights, strict=True):
        assert share_agrees(count / COUNT, weight, COUNT)


@pytest.mark.parametrize(("alpha", "share"), [(0.1, 0.59), (0.3, 0.20), (0.6, 0.04)])
def test_s_loras_power_law_has_its_top_shares(alpha: float, share: float) -> None:
    """Published for 200 adapters. Taken for a Zipf exponent, alpha would mean the opposite."""
    adapters, _ = draw(PowerLaw(alpha))
    drawn = (adapters == 0).mean()
    assert round(drawn, 2) == pytest.approx(share, abs=0.011)
    assert share_agrees(drawn, (1 / 200) ** alpha, COUNT)


def test_alpha_1_is_uniform() -> None:
    assert np.allclose(steady_weights(PowerLaw(1.0), 40), 1 / 40)


def test_distinct_asks_for_all_before_it_asks_again() -> None:
    adapters, _ = draw(Distinct(), num_adapters=7, count=23)
    for first in range(0, 14, 7):
        assert sorted(adapters[first : first + 7].tolist()) == list(range(7))


def test_a_shifting_ranking_stays_for_its_time_and_then_is_another() -> None:
    """100 seconds at 500 requests each; Zipf in each stretch, and the means add up."""
    popularity, count = Shifting(1.2, every_s=100.0), 50_000
    adapters, weights = draw(popularity, count=count, num_adapters=50)
    share = steady_weights(popularity, 50)[0]
    hottest = []
    for first in range(0, count, 10_000):
        name, most = Counter(adapters[first : first + 10_000].tolist()).most_common(1)[0]
        assert share_agrees(most / 10_000, share, 10_000)
        hottest.append(name)
    assert len(set(hottest)) > 2
    assert weights.sum() == pytest.approx(1.0)
    counts = np.bincount(adapters, minlength=50)
    assert all(share_agrees(n / count, w, count) for n, w in zip(counts, weights, strict=True))


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_clients_have_the_published_top_shares(name: str) -> None:
    figures = POOLS[name]
    shares = pool_shares(figures, figures.num_clients)
    assert len(shares) == figures.num_clients
    assert (shares > 0).all()
    assert (np.diff(shares) <= 0).all()
    for top, published in zip((1, 5, 10, 20), figures.top_shares, strict=True):
        assert shares[:top].sum() == pytest.approx(published, abs=1e-9)
    # The slope was not used to make them.
    slope = -np.polyfit(np.log(np.arange(1, 21)), np.log(shares[:20]), 1)[0]
    assert slope == pytest.approx(figures.head_slope, abs=0.1)


def test_more_adapters_than_clients_lengthen_the_tail_alone() -> None:
    figures = POOLS["m-large"]
    assert np.allclose(pool_shares(figures, 3000)[:10], pool_shares(figures, 162)[:10])
    assert pool_shares(figures, 3000).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_cvs_have_the_published_percentiles_by_rate(name: str) -> None:
    """Clients are whole: a share of requests below a percentile is off by half a client at most."""
    figures = POOLS[name]
    shares = pool_shares(figures, figures.num_clients)
    rng = np.random.default_rng(11)
    for _ in range(20):
        cvs = np.array([gaps.cv for gaps in draw_gaps_of(figures, shares, rng)])
        # Nothing is said above P95: all there have its CV.
        for cv, share in zip(figures.cvs[:3], (0.25, 0.5, 0.75), strict=True):
            below = shares[cvs <= cv * 1.000001].sum()
            assert abs(below - share) <= shares[0] / 2 + 1e-9
        assert cvs.min() >= figures.cvs[0] * 0.999999
        assert cvs.max() <= figures.cvs[3] * 1.000001


def test_a_pools_families_have_the_published_split() -> None:
    figures = POOLS["m-mid"]
    drawn = draw_gaps_of(figures, pool_shares(figures, 2000), np.random.default_rng(12))
    assert share_agrees(sum(gaps.is_weibull for gaps in drawn) / 2000, 0.40, 2000)


@pytest.mark.parametrize("num_adapters", [1, 7, 32, 401])
@pytest.mark.parametrize("mix", [*MIXES.values(), RankMix((8, 64), (3.0, 1.0))])
def test_ranks_are_dealt_out_exactly(mix: RankMix, num_adapters: int) -> None:
    ranks = deal_ranks(mix, np.random.default_rng(6), num_adapters=num_adapters)
    assert len(ranks) == num_adapters
    weights = mix.weights or (1.0,) * len(mix.ranks)
    for rank, weight in zip(mix.ranks, weights, strict=True):
        exact = num_adapters * weight / sum(weights)
        assert abs(ranks.count(rank) - exact) < 1


def test_ranks_stand_as_asked_against_popularity() -> None:
    """The first adapter is the hottest."""
    rng = np.random.default_rng(6)
    dealt = {
        order: deal_ranks(RankMix((8, 64, 16), order=order), rng, num_adapters=600)
        for order in ("random", "interleaved", "hot-low", "hot-high")
    }
    assert dealt["hot-low"] == (8,) * 200 + (16,) * 200 + (64,) * 200
    assert dealt["hot-high"] == tuple(reversed(dealt["hot-low"]))
    assert dealt["interleaved"][:6] == (8, 64, 16, 8, 64, 16)
    # Shuffled: the hotter half holds a rank's adapters as a hand of cards would.
    hot = dealt["random"][:300].count(8)
    assert hot != 200
    assert abs(hot - 100) < 5 * np.sqrt(300 * (1 / 3) * (2 / 3) * (300 / 599))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Zipf(-1.0), "s -1.0"),
        (lambda: PowerLaw(1.5), "alpha 1.5"),
        (lambda: Shifting(1.0, 0.0), "every_s 0.0"),
        (lambda: RankMix(()), "at least one"),
        (lambda: RankMix((0,)), "above 0"),
        (lambda: RankMix((8, 16), (1.0,)), "one for each of 2"),
        (lambda: RankMix((8,), order="hot"), "order 'hot'"),  # pyright: ignore[reportArgumentType]
        (lambda: pool_shares(POOLS["m-large"], 20), "num_adapters 20"),
    ],
)
def test_bad_settings_are_named(make, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make()


def test_a_fixed_rank_is_everybodys() -> None:
    assert set(deal_ranks(fixed(64), np.random.default_rng(1), num_adapters=9)) == {64}
