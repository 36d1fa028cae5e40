"""The comparison with a live server: what is fitted, what is compared, what would be noticed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lorry.bench.cost.step_logs import Span, steps_within
from lorry.bench.sim.agreement import (
    Agreement,
    agree,
    conclude,
    failures,
    furthest,
)
from lorry.bench.sim.fit import (
    AdapterFacts,
    FittedSteps,
    TooFewSteps,
    fit_runs,
    image_stretch,
    judge_runs,
    make_profile,
)
from lorry.bench.sim.front_end import FrontEnd, Solo, fit_front_end
from lorry.bench.sim.profile import Profile, checked, step_names
from lorry.bench.sim.simulate import simulate
from lorry.bench.sim.versus import LiveRuns, study
from lorry.bench.slo.bounds import FixedBounds
from lorry.bench.slo.stamps import Run
from lorry.bench.workload.records import Workload
from lorry.server.scheduling.policies import POLICIES
from lorry.server.scheduling.step_work import StepWork
from lorry.server.step_meter import MeteredStep
from lorry.tests import sim_builders
from lorry.tests.sim_study_builders import live_runs, make_facts, make_run, send_live

NAN = math.nan
SECOND = FixedBounds(ttft_s=1.0, tpot_s=1.0)


def make_requests(num: int) -> Workload:
    wishes = (sim_builders.make_wish(float(i), num_new=2) for i in range(num))
    return sim_builders.make_workload(*wishes)


# What is compared


def test_mean_ttft_is_over_requests_that_all_runs_answered() -> None:
    """By hand: the second is refused live in one round, the third in the simulation."""
    live = [make_run(0.5, 0.1, 0.9, 2.0), make_run(0.7, NAN, 0.9, 2.2)]
    simulated = make_run(0.6, 0.3, NAN, 1.8, simulated=True)
    found = agree(live, simulated, make_requests(4), SECOND)
    assert (found.num_requests, found.num_compared) == (4, 2)  # the first and the last
    assert found.ttft_s.live == pytest.approx(((0.5 + 2.0) / 2, (0.7 + 2.2) / 2))
    assert found.ttft_s.simulated == pytest.approx((0.6 + 1.8) / 2)
    assert found.ttft_s.ratio == pytest.approx(1.2 / 1.35)
    # Three, two and two of four were in time; one request a second was offered.
    assert found.goodput_per_s.live == pytest.approx((0.75, 0.5))
    assert found.goodput_per_s.simulated == pytest.approx(0.5)


def test_nothing_in_common_is_no_agreement() -> None:
    found = agree([make_run(NAN, 0.1)], make_run(0.1, NAN), make_requests(2), SECOND)
    assert found.num_compared == 0
    assert not found.ttft_s.holds


@pytest.mark.parametrize(
    ("live", "simulated", "allowed", "holds"),
    [
        ((10.0, 10.0), 10.9, 0.1, True),
        ((10.0, 10.0), 11.1, 0.1, False),
        ((10.0, 10.0), 8.9, 0.1, False),
        # The rounds differ by 4 of their median 10: twice that is allowed.
        ((8.0, 12.0), 17.9, 0.8, True),
        ((8.0, 12.0), 18.1, 0.8, False),
        ((10.0,), 11.5, 0.1, False),  # one round has no spread to hide behind
        ((0.0, 0.0), 1.0, 0.1, False),
        ((0.0, 0.0, 3.0), 1.0, math.inf, False),  # rounds without a middle allow nothing
    ],
)
def test_allowed_is_a_tenth_or_twice_the_spread(
    live: tuple[float, ...], simulated: float, allowed: float, holds: bool
) -> None:
    found = Agreement(live, simulated)
    assert found.allowed == pytest.approx(allowed)
    assert found.holds is holds


def test_one_figure_stands_for_both_policies() -> None:
    near, low, high = Agreement((1.0,), 1.02), Agreement((1.0,), 0.8), Agreement((1.0,), 1.1)
    assert furthest([near, low, high]) == 0.8
    assert math.isnan(furthest([near, Agreement((0.0,), 1.0)]))


def make_agreements(fcfs: tuple[tuple[float, ...], float], slora: tuple[tuple[float, ...], float]):
    """By policy: goodput of the live rounds, and simulated."""
    whole = agree([make_run(0.1)], make_run(0.1), make_requests(1), SECOND)
    return {
        name: replace(whole, policy=name, goodput_per_s=Agreement(*values))
        for name, values in (("fcfs", fcfs), ("slora", slora))
    }


@pytest.mark.parametrize(
    ("fcfs", "slora", "live_winner", "simulated_winner"),
    [
        (((1.0, 1.1), 1.0), ((2.0, 2.1), 2.0), "slora", "slora"),
        (((2.0, 2.1), 2.0), ((1.0, 1.1), 1.0), "fcfs", "fcfs"),
        (((1.0, 1.4), 1.0), ((1.1, 1.5), 1.2), "", ""),  # less than the rounds differ by
        (((1.0, 1.1), 2.0), ((2.0, 2.1), 1.0), "slora", "fcfs"),
        (((1.0, 1.1), 1.0), ((2.0, 2.1), 1.05), "slora", ""),
    ],
)
def test_the_better_policy_is_the_same(
    fcfs: tuple[tuple[float, ...], float],
    slora: tuple[tuple[float, ...], float],
    live_winner: str,
    simulated_winner: str,
) -> None:
    agreements = make_agreements(fcfs, slora)
    found = conclude(agreements, ("fcfs", "slora"))
    assert (found.live_winner, found.simulated_winner) == (live_winner, simulated_winner)
    # A comparison that the live rounds leave open proves nothing.
    assert found.same is (live_winner == simulated_winner != "")
    lines = [line for line in failures([], found) if "better policy" in line]
    assert bool(lines) is not found.same


# What is fitted


def make_steps(
    coefs_s: tuple[float, ...], num: int = 300, *, gap_s: float = 0.0, hiccup_s: float = 0.0
) -> list[MeteredStep]:
    """Back to back, of drawn work; every hundredth has a hiccup."""
    rng, ended_s = np.random.default_rng(5), 100.0
    steps: list[MeteredStep] = []
    for idx in range(num):
        chunk, rows, adapters = (int(rng.integers(*ends)) for ends in ((0, 60), (1, 17), (0, 9)))
        work = StepWork(
            1,
            int(chunk > 0),
            chunk,
            chunk * (chunk + 1) // 2 + chunk * int(rng.integers(0, 50)),
            rows,
            rows * int(rng.integers(20, 200)),
            adapters,
            adapters * int(rng.integers(10_000, 80_000)),
            (chunk + rows) * int(rng.integers(0, 80_000)),
        )
        seconds = sum(coef * amount for coef, amount in zip(coefs_s, work, strict=True))
        seconds += hiccup_s * (idx % 100 == 99)
        ended_s += gap_s + seconds
        steps.append(MeteredStep(ended_s, seconds, math.nan, work))
    return steps


COEFS_S = (0.01, 0.002, 1e-4, 3e-7, 4e-4, 2e-6, 3e-4, 2e-8, 5e-10)


def test_fit_finds_the_coefficients_and_the_gap() -> None:
    """An idle second between two runs is nobody's gap."""
    steps = make_steps(COEFS_S, gap_s=0.0004)
    later = [step._replace(ended_s=step.ended_s + 1000) for step in steps]
    fitted = fit_runs([steps, later])
    assert np.array(fitted.coefs_s) == pytest.approx(np.array(COEFS_S), rel=0.05)
    assert fitted.stretch == pytest.approx(1.0, abs=0.002)
    assert fitted.gap_s == pytest.approx(0.0004, rel=1e-3)
    assert fitted.num_steps == 600
    unseen = judge_runs(fitted, [make_steps(COEFS_S, 50)])
    assert unseen.mape < 0.01
    assert unseen.r2 > 0.99


def test_a_wait_is_no_gap() -> None:
    """Steps that are 30 ms apart were waited for."""
    assert fit_runs([make_steps(COEFS_S, gap_s=0.03)]).gap_s == 0.0


def test_hiccups_stretch_the_sum_and_not_the_coefficients() -> None:
    steps = make_steps(COEFS_S, hiccup_s=0.3)
    fitted = fit_runs([steps])
    assert fitted.coefs_s[0] == pytest.approx(COEFS_S[0], rel=0.1)
    foretold_s = float(fitted.predict_s(steps).sum())
    assert fitted.stretch == pytest.approx(sum(step.seconds for step in steps) / foretold_s)
    assert fitted.stretch > 1.05


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(TooFewSteps, match="89 steps"):
        fit_runs([make_steps(COEFS_S, 89)])


def test_steps_are_taken_by_when_they_ended() -> None:
    steps = make_steps(COEFS_S, 5)
    ends_s = [step.ended_s for step in steps]
    assert steps_within(steps, Span(ends_s[1], ends_s[2])) == steps[1:3]
    assert steps_within(steps, Span(0.0, 1.0)) == []


def test_the_front_end_is_a_line_through_medians() -> None:
    solos = [Solo(num, 0.004 + 2e-6 * num) for num in (16, 96, 192) for _ in range(5)]
    solos[3] = Solo(16, 5.0)  # one hiccup
    found = fit_front_end(solos)
    assert found.base_s == pytest.approx(0.004)
    assert found.per_token_s == pytest.approx(2e-6)
    shrinking = fit_front_end([Solo(16, 0.003), Solo(96, 0.001)])
    assert (shrinking.base_s, shrinking.per_token_s) == (pytest.approx(0.002), 0.0)


def test_stretch_of_images_gives_each_adapter_its_pages() -> None:
    facts = [
        AdapterFacts(8, 80_000, 2),
        AdapterFacts(64, 640_000, 11),
        AdapterFacts(16, 160_000, 3),
    ]
    stretch = image_stretch(facts, 65_536)
    assert stretch >= 1.0
    assert [-int(-one.weight_bytes * stretch // 65_536) for one in facts] == [2, 11, 3]


def test_where_no_stretch_fits_all_the_fewest_pages_are_wrong() -> None:
    """A rank of 16 in the pages of more: three such weigh less than five of rank 64."""
    facts = [AdapterFacts(16, 1_277_952, 15)] * 3 + [AdapterFacts(64, 5_111_808, 52)] * 5
    stretch = image_stretch(facts, 98_304)
    assert [-int(-one.weight_bytes * stretch // 98_304) for one in facts] == [13] * 3 + [52] * 5


def test_a_profile_says_where_each_number_is_from() -> None:
    truth = sim_builders.make_profile()
    facts = make_facts(truth, sim_builders.draw_workload(1, num_requests=2, rate_per_s=1))
    fitted = FittedSteps(COEFS_S, stretch=1.5, gap_s=0.001, num_steps=900)
    made = checked(make_profile(facts, fitted, FrontEnd(0.004, 1e-6), name="x", result="R.json"))
    assert made.value("steps_s") == pytest.approx(0.01 * 1.5 + 0.001)
    assert made.value("decode_rows_s") == pytest.approx(4e-4 * 1.5)
    assert made.value("request_s") + made.value("reply_s") == pytest.approx(0.004)
    assert "R.json: 900 steps" in made.coefficients["decode_rows_s"].source
    assert made.assumed == ("disk_bytes_per_s",)


# The whole argument


def simulated(workload: Workload, profile: Profile, policy: str) -> Run:
    return simulate(workload, profile, policy=POLICIES[policy], all_pieces=True).run


def make_truth(**overrides: float) -> Profile:
    """What the live server is; what it does not tell and no flag says is the server's default."""
    told = {"max_bypass_s": 5.0, "max_waiting": 10_000, "ttft_s": 2.0, "tpot_s": 0.2}
    warm = {"disk_bytes_per_s": 1e15, "host_bytes": 10**9}
    return sim_builders.make_profile(
        **(told | warm | {"max_running": 10, "num_pages": 120} | overrides)
    )


def traces() -> tuple[Workload, Workload]:
    """Another load, other lengths, other adapters; the second is more than can be served."""
    fit = sim_builders.draw_workload(3, num_requests=60, rate_per_s=7)
    judged = sim_builders.draw_workload(4, num_requests=80, rate_per_s=30)
    bounded = (replace(one, ttft_s=0.6, tpot_s=0.06) for one in judged.requests)
    return fit, replace(judged, requests=tuple(bounded))


@cache
def known() -> LiveRuns:
    return live_runs(*traces(), make_truth())


def test_a_server_that_is_a_simulator_is_found_out() -> None:
    """Fitted on its log of one trace alone, the simulator foretells the other."""
    truth = make_truth()
    report = study(known(), simulated, result="R.json")
    for name in step_names():
        wanted = pytest.approx(truth.value(name), rel=0.2, abs=1e-9)
        assert report.profile.value(name) == wanted, name
    assert report.accuracy.mape < 0.01
    assert report.accuracy.r2 > 0.99
    assert failures(report.agreements, report.conclusion) == []
    for one in report.agreements:
        assert one.goodput_per_s.ratio == pytest.approx(1.0, abs=0.05)
        assert one.ttft_s.ratio == pytest.approx(1.0, abs=0.05)
        assert 20 < one.num_compared <= one.num_requests
    assert report.conclusion.live_winner == report.conclusion.simulated_winner == "slora"


def test_a_server_that_got_slower_after_the_fit_is_noticed() -> None:
    """B on a machine a fifth slower than A's: the claim must not hold."""
    truth, (_, judged) = make_truth(), traces()
    slower = make_truth(**{name: 1.2 * truth.value(name) for name in step_names()})
    cells = send_live(judged, slower, num_rounds=1)
    report = study(replace(known(), judged_cells=cells), simulated, result="R.json")
    assert len(failures(report.agreements, report.conclusion)) >= 2
    assert report.accuracy.mape > 0.1
