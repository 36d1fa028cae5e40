"""S-LoRA's published overload: their requests drawn again, a profile that is not made of it, and an
overload a tenth as long, which has to come out. The quoted runs are `lorry bench sim`'s to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lorry.bench.sim import slora
from lorry.bench.sim.profile import named_profile
from lorry.bench.sim.simulate import simulate
from lorry.bench.sim.slora_profile import NAME, derive, make_profile
from lorry.bench.sim.slora_published import BY_CV, BY_RATE, NOT_OVERLOADED, Published, draw_workload
from lorry.bench.slo.stamps import Outcome, RequestStamps, Run
from lorry.bench.workload.records import Workload
from lorry.server.scheduling.policies import POLICIES

FCFS, EARLY_ABORT = BY_CV[:2]


@cache
def answer(workload: Workload, policy: str) -> Run:
    return simulate(workload, named_profile(NAME), policy=POLICIES[policy]).run


def by_cv(cv: float) -> Published:
    return replace(FCFS, cv=cv)


@pytest.mark.parametrize("cv", [1, 2, 4, 6, 8])
def test_a_trace_is_theirs(cv: float) -> None:
    """1,800 requests in all; instants, lengths and adapters of the frozen generator."""
    workload = draw_workload(by_cv(cv))
    requests = workload.requests
    assert len(requests) == 1800
    # Drawn before the gaps, so the same for every cv: means of the stream that seed 42 begins.
    assert np.mean([one.num_prompt_tokens for one in requests]) == pytest.approx(259.4333, abs=1e-3)
    assert np.mean([one.num_new_tokens for one in requests]) == pytest.approx(260.7228, abs=1e-3)
    spans_s = {1: 293.717, 2: 295.973, 4: 285.379, 6: 322.944, 8: 290.714}
    assert requests[-1].at_s == pytest.approx(spans_s[int(cv)], abs=1e-3)
    assert {one.ttft_s for one in requests} == {6.0}
    assert [adapter.rank for adapter in workload.adapters[:4]] == [64, 32, 16, 64]


def test_the_profile_is_what_is_derived() -> None:
    """A file edited by hand would be another claim than the one its sources make."""
    held, made = named_profile(NAME), make_profile()
    assert held.coefficients.keys() == made.coefficients.keys()
    for name, one in made.coefficients.items():
        assert held.coefficients[name].value == pytest.approx(one.value, rel=1e-9), name
        assert held.coefficients[name].source == one.source, name


def test_assumptions_agree_with_each_other() -> None:
    """Three rates set one coefficient: had reading or prompts the wrong price, they would drift."""
    each_s = np.array(derive().overheads_s)
    assert len(each_s) == len(NOT_OVERLOADED) == 3
    assert np.ptp(each_s) < 0.006  # of steps of 60 to 90 ms
    assert each_s.min() > 0.0


def test_no_overload_is_among_what_set_the_profile() -> None:
    assert all(run.attainment == 1.0 for run in NOT_OVERLOADED)
    assert not set(NOT_OVERLOADED) & set(BY_CV)


def test_latencies_without_overload_come_back() -> None:
    """What the profile was set by, through the engine: a closed circle, and no proof of more."""
    (run,) = BY_RATE[:1]
    simulated = answer(draw_workload(run, span_s=120.0), "fcfs").requests
    decoding_s = [one.end_s - one.first_s for one in simulated]
    num_tokens = [one.num_tokens for one in simulated]
    per_token_s = sum(decoding_s) / (sum(num_tokens) - len(num_tokens))
    asked = draw_workload(run).requests
    published_s = (run.mean_latency_s - run.mean_first_s) / (
        np.mean([one.num_new_tokens for one in asked]) - 1
    )
    assert per_token_s == pytest.approx(published_s, rel=0.05)


def possible(rate_per_s: float, span_s: float) -> float:
    """Share of the requests that can be let in: what memory holds at once, and what leaves it while
    they come. Both are published: answers a second, and seconds in decoding (Little's law).
    """
    held = EARLY_ABORT.throughput_per_s * (EARLY_ABORT.mean_latency_s - EARLY_ABORT.mean_first_s)
    return (held + EARLY_ABORT.throughput_per_s * span_s) / (rate_per_s * span_s)


def test_a_short_overload() -> None:
    """Twice their rate for a tenth of their span: what fits the bound's arithmetic is attained by
    early abort, and less in the order of arrival.
    """
    assert possible(6.0, 300.0) == pytest.approx(EARLY_ABORT.attainment, abs=0.01)
    wanted = [replace(run, rate_per_s=12.0) for run in (FCFS, EARLY_ABORT)]
    fcfs, early_abort = slora.reproduce(answer, wanted, span_s=30.0)
    assert early_abort.attainment == pytest.approx(possible(12.0, 30.0), abs=0.06)
    assert fcfs.attainment < early_abort.attainment - 0.1
    assert early_abort.mean_first_s < 3.0 < fcfs.mean_first_s
    assert fcfs.num_aborted == 0 < early_abort.num_aborted


def make_stamps(index: int, first_s: float | None, *, outcome: Outcome) -> RequestStamps:
    pieces = () if first_s is None else (first_s, first_s + 1)
    return RequestStamps(index, 10.0, 10.0, outcome, 20.0, pieces, (1, 1)[: len(pieces)])


def test_read_off_counts_as_their_script_does() -> None:
    """Aborted requests are in the denominator of attainment and in no mean."""
    run = Run(
        "slora",
        (
            make_stamps(0, 15.9, outcome=Outcome.OK),
            make_stamps(1, 16.0, outcome=Outcome.OK),  # at the bound is not within it
            make_stamps(2, None, outcome=Outcome.REFUSED),
            make_stamps(3, 11.1, outcome=Outcome.OK),
        ),
    )
    found = slora.read_off(EARLY_ABORT, run, took_s=0.0)
    assert found.attainment == 2 / 4
    assert found.throughput_per_s == 3 / 20
    assert found.mean_first_s == pytest.approx((5.9 + 6.0 + 1.1) / 3)
    assert found.num_aborted == 1


def constant(first_s: float) -> Callable[[Workload, str], Run]:
    """Answers everyone so long after it was due."""

    def send(workload: Workload, policy: str) -> Run:
        stamps = (
            RequestStamps(
                i, one.at_s, one.at_s, Outcome.OK, one.at_s + 9, (one.at_s + first_s,), (1,)
            )
            for i, one in enumerate(workload.requests)
        )
        return Run(policy, tuple(stamps), simulated=True)

    return send


def test_what_is_quoted_is_judged_and_the_rest_shown() -> None:
    """A simulator that is never late misses both quoted figures; other runs fail nothing."""
    done = slora.reproduce(constant(1.0), [*slora.QUOTED, BY_CV[2]], span_s=5.0)
    assert [one.holds for one in done] == [False, False, False]
    wrong = slora.failures(done)
    assert len(wrong) == 2
    assert "fcfs: attainment 1.000 simulated, 0.101 published" in wrong[0]
    assert slora.failures(slora.reproduce(constant(7.0), slora.QUOTED[:1], span_s=5.0)) == []
