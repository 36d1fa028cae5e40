"""Arrivals: instants whose moments are those of their process, from a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorry.bench.workload.arrivals import (
    Batched,
    Extent,
    FlashCrowd,
    Gamma,
    OnOff,
    Poisson,
    Process,
    draw_instants,
    on_off_idc,
)
from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.moments import dispersion
from lorry.bench.workload.presets import AZURE_CODE_BURSTS, AZURE_CONV_DRIFT
from lorry.bench.workload.renewal import Gaps, draw_gaps, instants_until, weibull_shape
from lorry.bench.workload.report import PUBLISHED
from lorry.bench.workload.superposition import superpose
from lorry.tests.workload_builders import SIGMAS, agrees, share_agrees

PROCESSES = (
    Poisson(),
    Gamma(4.0),
    OnOff(5.0, 20.0),
    FlashCrowd(5.0, at_s=10.0, for_s=5.0),
    Batched(3.0),
)


def draw(
    process: Process, *, seed: int = 1, rate_per_s: float = 2.5, num: int = 0, span_s: float = 0.0
) -> np.ndarray:
    return draw_instants(
        process, np.random.default_rng(seed), rate_per_s=rate_per_s, extent=Extent(num, span_s)
    )


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_instants_ascend_from_the_start_as_many_or_as_long_as_asked(process: Process) -> None:
    some, span = draw(process, num=500), draw(process, span_s=200.0)
    for instants in (some, span):
        assert instants[0] >= 0
        assert (np.diff(instants) >= 0).all()
    assert len(some) == 500
    assert span[-1] < 200
    assert not np.array_equal(draw(process, num=500), draw(process, num=500, seed=2))


@pytest.mark.parametrize(
    ("cv", "is_weibull"),
    # A Weibull of higher CV has a fourth moment too large for any sample: see its median.
    [(0.5, False), (1.0, False), (4.0, False), (8.0, False), (0.5, True), (1.0, True), (2.0, True)],
)
def test_gaps_have_the_mean_and_cv_of_their_family(cv: float, is_weibull: bool) -> None:
    """First and second moment; what a mean of squares may miss by is known from the fourth."""
    count, gaps = 100_000, Gaps(cv, is_weibull=is_weibull)
    drawn = draw_gaps(gaps, np.random.default_rng(7), count)
    shape = gaps.shape
    if is_weibull:
        fourth = math.gamma(1 + 4 / shape) / math.gamma(1 + 1 / shape) ** 4
    else:
        fourth = (shape + 1) * (shape + 2) * (shape + 3) / shape**3
    second = 1 + cv**2
    assert agrees(drawn.mean(), 1.0, sd=cv, count=count)
    sd = math.sqrt(fourth - second**2)
    assert agrees((drawn**2).mean(), second, sd=sd, count=count)


@pytest.mark.parametrize("cv", [0.7, 1.0, 10.0, 57.0])
def test_weibull_gaps_have_their_median(cv: float) -> None:
    count, shape = 20_000, weibull_shape(cv)
    drawn = draw_gaps(Gaps(cv, is_weibull=True), np.random.default_rng(8), count)
    median = math.log(2) ** (1 / shape) / math.gamma(1 + 1 / shape)
    assert share_agrees((drawn < median).mean(), 0.5, count)


def test_weibull_of_cv_1_is_exponential() -> None:
    assert weibull_shape(1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("is_weibull", [False, True], ids=["gamma", "weibull"])
def test_a_process_in_equilibrium_sends_no_surplus_at_its_beginning(is_weibull: bool) -> None:
    """Begun at a gap, each sender of CV 8 would send (64 - 1) / 2 requests too many at once."""
    gaps, num_senders, rate_per_s, end_s = Gaps(8.0, is_weibull=is_weibull), 3000, 0.05, 100.0
    drawn = [
        instants_until(gaps, np.random.default_rng(seed), rate_per_s=rate_per_s, end_s=end_s)
        for seed in range(num_senders)
    ]
    for low_s, high_s in ((0, 50), (50, 100)):
        counts = np.array([((part >= low_s) & (part < high_s)).sum() for part in drawn])
        sd = float(counts.std())
        assert agrees(counts.mean(), rate_per_s * 50, sd=sd, count=num_senders)
        assert counts.mean() < 4  # the surplus alone would be 31


@pytest.mark.parametrize("process", [Poisson(), Gamma(4.0), OnOff(5.0, 20.0), Batched(0.5)])
def test_the_mean_rate_is_the_wanted_one(process: Process) -> None:
    span_s, rate_per_s = 20_000.0, 2.5
    instants = draw(process, span_s=span_s, rate_per_s=rate_per_s)
    # Variance of the count: Poisson's, the CV's square of it, or the index of dispersion.
    times = 16.0 if isinstance(process, Gamma) else 1.0
    if isinstance(process, OnOff):
        times = on_off_idc(process, rate_per_s=rate_per_s, window_s=span_s)
    expected = span_s * rate_per_s
    assert abs(len(instants) - expected) < SIGMAS * math.sqrt(times * expected)


def test_bursts_begin_as_if_they_had_always_run() -> None:
    """Begun busy, the first second would hold five times its share."""
    process, num_runs = OnOff(5.0, 20.0), 800
    firsts = [(draw(process, num=20, seed=seed) < 1.0).sum() for seed in range(num_runs)]
    assert agrees(float(np.mean(firsts)), 2.5, sd=float(np.std(firsts)), count=num_runs)


@pytest.mark.parametrize("window_s", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("quiet_ratio", [0.0, 0.3])
def test_bursts_have_the_dispersion_that_theory_gives(quiet_ratio: float, window_s: float) -> None:
    process, span_s = OnOff(4.0, 12.0, quiet_ratio), 60_000.0
    theory = on_off_idc(process, rate_per_s=5.0, window_s=window_s)
    drawn = dispersion(draw(process, span_s=span_s, rate_per_s=5.0), window_s)
    # A sample variance of n independent counts errs by sqrt(2 / n); counts of windows within one
    # cycle of busy and quiet are not independent.
    num_windows = span_s / max(window_s, 16.0)
    assert abs(drawn / theory - 1) < SIGMAS * math.sqrt(2 / num_windows)


@pytest.mark.parametrize(
    ("process", "name"), [(AZURE_CODE_BURSTS, "azure-code"), (AZURE_CONV_DRIFT, "azure-conv")]
)
def test_the_azure_presets_are_as_bursty_as_their_traces(process: OnOff, name: str) -> None:
    """Two times and a ratio have to meet three published figures: within 15 %."""
    published = PUBLISHED[name]
    for window_s, idc in zip((1.0, 10.0, 60.0), published.idc, strict=True):
        theory = on_off_idc(process, rate_per_s=published.rate_per_s, window_s=window_s)
        assert theory == pytest.approx(idc, rel=0.15)
    instants = draw(process, rate_per_s=published.rate_per_s, num=50_000)
    gaps = np.diff(instants)
    # Nothing in the preset was set by it.
    assert gaps.std() / gaps.mean() == pytest.approx(published.gap_cv, rel=0.15)


def test_batches_look_like_mooncakes() -> None:
    """A step of three seconds gives the trace's CV and its dispersion within a second."""
    published = PUBLISHED["mooncake-conv"]
    instants = draw(Batched(3.0), rate_per_s=published.rate_per_s, num=20_000)
    assert set(np.unique(instants % 3.0)) == {0.0}
    gaps = np.diff(instants)
    assert gaps.std() / gaps.mean() == pytest.approx(published.gap_cv, rel=0.05)
    assert dispersion(instants, 1.0) == pytest.approx(published.idc[0], rel=0.05)


def test_poisson_has_a_dispersion_of_one_at_any_scale() -> None:
    instants = draw(Poisson(), span_s=20_000.0, rate_per_s=5.0)
    for window_s in (1.0, 10.0, 60.0):
        error = SIGMAS * math.sqrt(2 * window_s / 20_000)
        assert abs(dispersion(instants, window_s) - 1) < error


@pytest.mark.parametrize("extent", [{"num": 40_000}, {"span_s": 400.0}], ids=["count", "span"])
def test_a_flash_crowd_comes_when_it_is_to_and_goes(extent: dict[str, float]) -> None:
    process = FlashCrowd(6.0, at_s=100.0, for_s=50.0)
    instants = draw(process, rate_per_s=40.0, **extent)
    for low_s, high_s, factor in ((0, 100, 1), (100, 150, 6), (150, 300, 1)):
        expected = 40 * factor * (high_s - low_s)
        count = int(((instants >= low_s) & (instants < high_s)).sum())
        assert abs(count - expected) < SIGMAS * math.sqrt(expected)


def test_another_rate_is_the_same_load_at_other_instants() -> None:
    """What makes two rates of one seed comparable."""
    for process in (Poisson(), Gamma(4.0)):
        slow, fast = draw(process, num=300), draw(process, num=300, rate_per_s=5.0)
        assert np.allclose(slow, 2 * fast)


def test_senders_are_merged_in_order_and_each_keeps_its_rate() -> None:
    rates = np.array([8.0, 2.0, 0.0001])
    instants, senders = superpose(
        rates, [Gaps(1.0)] * 3, np.random.default_rng(3), extent=Extent(20_000)
    )
    assert len(instants) == 20_000
    assert (np.diff(instants) >= 0).all()
    assert share_agrees((senders == 0).mean(), 0.8, 20_000)
    assert np.abs(np.diff(instants).mean() - 0.1) < SIGMAS * 0.1 / math.sqrt(20_000)


def test_senders_drawn_for_longer_begin_the_same() -> None:
    """Else a run that came out short would be replaced by a luckier one."""
    drawn = [
        superpose(
            np.full(5, 0.2), [Gaps(8.0)] * 5, np.random.default_rng(4), extent=Extent(span_s=span_s)
        )[0]
        for span_s in (300.0, 3000.0)
    ]
    assert len(drawn[0]) > 0
    assert np.array_equal(drawn[0], drawn[1][: len(drawn[0])])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaps(0.0), "cv 0.0"),
        (lambda: OnOff(0.0, 1.0), "busy_s 0.0"),
        (lambda: OnOff(1.0, 1.0, 2.0), "quiet_ratio 2.0"),
        (lambda: FlashCrowd(5.0, at_s=-1.0, for_s=1.0), "at_s -1.0"),
        (lambda: Extent(5, 5.0), "one of them"),
        (lambda: draw(Poisson(), num=5, rate_per_s=0.0), "rate_per_s 0.0"),
    ],
)
def test_bad_settings_are_named(make, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make()
