"""Figures of hand-made stamps, the numbers worked out by hand beside them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lorry.bench.slo.bounds import (
    Bounds,
    FixedBounds,
    MultipleBounds,
    UnloadedCell,
    UnloadedTable,
    all_bounds,
    bounds_of,
    with_bounds,
)
from lorry.bench.slo.classes import adapter_popularity
from lorry.bench.slo.figures import Figures, figures, offered_span_s, token_gaps_s
from lorry.bench.slo.intervals import wilson
from lorry.bench.slo.judge import judge, judge_run
from lorry.bench.slo.lag import lag_of
from lorry.bench.slo.plain import plain
from lorry.bench.slo.stamps import Outcome, Run
from lorry.bench.workload.records import BASE, Piece, Workload, WorkloadAdapter
from lorry.tests.slo_builders import make_request, make_run, make_stamps, make_workload

ADAPTERS = (WorkloadAdapter("a", 8, 0.7), WorkloadAdapter("b", 64, 0.3))
BOUNDS = FixedBounds(ttft_s=1.0, tpot_s=0.5)


def make_case() -> tuple[Run, Workload]:
    """Six requests a second apart, one of each fate. Only the first and the last meet."""
    asks = [
        make_request(10.0, "a"),  # good: TTFT 0.5, TPOT (11.4 - 10.5) / 3 = 0.3
        make_request(11.0, "a"),  # late: TTFT 1.5, though sent late and quick from there
        make_request(12.0, "b"),  # slow: TTFT 0.5, TPOT (14.5 - 12.5) / 3
        make_request(13.0, "b"),  # refused
        make_request(14.0, BASE),  # timeout after a first token at 14.75
        make_request(15.0, "b", num_new_tokens=1),  # good: one token has no TPOT
    ]
    run = make_run(
        make_stamps(0, 10.0, (10.5, 11.0, 11.4), piece_tokens=(1, 2, 1)),
        make_stamps(1, 11.0, (12.5, 12.6, 12.7, 12.8), sent_s=12.2),
        make_stamps(2, 12.0, (12.5, 13.0, 13.5, 14.5)),
        make_stamps(3, 13.0, outcome=Outcome.REFUSED, end_s=13.25, error="full"),
        make_stamps(4, 14.0, (14.75,), outcome=Outcome.TIMEOUT, end_s=20.0),
        make_stamps(5, 15.0, (15.25,)),
    )
    return run, make_workload(asks, adapters=ADAPTERS)


def figures_of_case() -> Figures:
    run, workload = make_case()
    return figures(run, workload, BOUNDS)


def test_misses_are_misses() -> None:
    """A refusal or a timeout that is left out of the count makes overload look well."""
    found = figures_of_case()
    assert found.num_met == 2 and found.num_requests == 6
    assert found.attainment == wilson(2, 6)
    assert found.outcomes == {"ok": 4, "refused": 1, "timeout": 1, "failed": 0}
    assert (found.num_late, found.num_slow) == (1, 1)


def test_rates_count_over_their_own_spans() -> None:
    """Six requests in gaps of a second offer one a second, however long the server drains."""
    found = figures_of_case()
    assert (found.offered_span_s, found.offered_per_s) == (6.0, 1.0)
    assert found.goodput_per_s.value == pytest.approx(2 / 6)
    assert found.makespan_s == 10.0  # 10.0 to 20.0
    assert found.completed_per_s == 0.4
    assert found.tokens_per_s == pytest.approx((4 + 4 + 4 + 0 + 1 + 1) / 10)


def test_drain_does_not_move_goodput() -> None:
    """Or a policy would gain by refusing at the end what others still finish."""
    run, workload = make_case()
    last = replace(run.requests[-2], end_s=1000.0)
    longer = replace(run, requests=(*run.requests[:-2], last, run.requests[-1]))
    assert figures(longer, workload, BOUNDS).goodput_per_s == figures_of_case().goodput_per_s


def test_requests_of_one_instant_have_no_rate() -> None:
    """A burst is spread over the time it took, not over none."""
    run = make_run(*(make_stamps(i, 0.0, (1.0, 4.0)) for i in range(2)))
    assert offered_span_s(run) == 4.0


def test_latencies_count_from_the_due_instant() -> None:
    """From the instant of sending, a client that falls behind would hide the wait."""
    found = figures_of_case()
    assert found.ttft_s.count == 5  # all but the refused one
    assert found.ttft_s.mean == pytest.approx((0.5 + 1.5 + 0.5 + 0.75 + 0.25) / 5)
    assert found.ttft_s.p50.value == 0.5
    assert found.tpot_s.count == 3  # whole, and of more than one token
    assert found.tpot_s.mean == pytest.approx((0.3 + 0.1 + 2 / 3) / 3)
    assert found.tpt_s.count == 4
    assert found.tpt_s.mean == pytest.approx((1.4 / 4 + 1.8 / 4 + 2.5 / 4 + 0.25) / 4)
    assert found.lag.max_ms == pytest.approx(1200)


def test_medians_of_all_forget_nobody() -> None:
    """Who got no token waited for ever: a median of those served rewards turning others away."""
    found = figures_of_case()
    assert found.ttft_s.p50.value == 0.5
    assert found.ttft_median_of_all_s == (0.5 + 0.75) / 2
    # 0.1, 0.3, 2/3 and two that are not whole; the answer of one token has none.
    assert found.tpot_median_of_all_s == pytest.approx(2 / 3)
    run = make_run(make_stamps(outcome=Outcome.REFUSED, end_s=1.0))
    nobody = figures(run, make_workload(), BOUNDS)
    assert nobody.ttft_median_of_all_s == nobody.tpot_median_of_all_s == math.inf
    single = make_workload([make_request(num_new_tokens=1)])
    assert math.isnan(
        figures(make_run(make_stamps(0, 0.0, (0.5,))), single, BOUNDS).tpot_median_of_all_s
    )


def test_tokens_of_a_piece_share_its_gap() -> None:
    """Else a server that sends two tokens at once would have half of its gaps at zero."""
    run, _ = make_case()
    gaps_s, counts = token_gaps_s(run.requests[:2])
    assert gaps_s == pytest.approx([0.25, 0.4, 0.1, 0.1, 0.1])
    assert list(counts) == [2, 1, 1, 1, 1]
    gaps_s, _ = token_gaps_s(run.requests[3:])  # none, one and one token: no gap
    assert len(gaps_s) == 0
    found = figures_of_case().itl_s
    assert found.count == 3 + 3 + 3
    assert found.mean == pytest.approx((0.9 + 0.3 + 2.0) / 9)
    assert found.p50.value == pytest.approx(0.25)  # of .1 .1 .1 .25 .25 .4 .5 .5 1.0


def test_bounds_are_inclusive() -> None:
    stamps = make_stamps(0, 0.0, (1.0, 1.5))
    assert judge(stamps, Bounds(1.0, 0.5)).met
    assert judge(stamps, Bounds(0.99, 0.5)).is_late
    assert judge(stamps, Bounds(1.0, 0.49)).is_slow


def test_one_token_is_judged_by_its_ttft() -> None:
    stamps = make_stamps(0, 0.0, (1.0,))
    assert judge(stamps, Bounds(1.0, 0.0)).met
    assert not judge(stamps, Bounds(0.5, 0.0)).met
    assert math.isnan(judge(stamps, Bounds(1.0, 0.0)).tpot_s)


def test_classes() -> None:
    """By rank in rising order, by popularity from the weights; the base stands apart."""
    found = figures_of_case()
    assert [(g.name, g.num_met, g.num_requests) for g in found.by_rank] == [
        ("base", 0, 1),
        ("r8", 1, 2),
        ("r64", 1, 3),
    ]
    assert [(g.name, g.num_requests) for g in found.by_popularity] == [
        ("hot", 2),
        ("warm", 3),
        ("base", 1),
    ]
    ttft_s = found.by_rank[1].ttft_s
    assert (ttft_s.count, ttft_s.mean) == (2, 1.0)


def test_adapters_count_once_each() -> None:
    """a has 1/2, b 1/3: a popular adapter must not hide the others. The base, with 0, is none."""
    found = figures_of_case().adapters
    assert (found.num_adapters, found.num_full, found.num_none) == (2, 0, 0)
    assert found.mean == found.p50 == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.p10 == pytest.approx(1 / 3 + 0.1 * (1 / 2 - 1 / 3))
    to_base = make_workload([make_request(0.0, BASE)])
    nobody = figures(make_run(make_stamps(0, 0.0, (0.5, 0.6))), to_base, BOUNDS).adapters
    assert nobody.num_adapters == 0 and math.isnan(nobody.mean)


def test_popularity_goes_by_weight() -> None:
    """Hot till half of the requests, warm till nine tenths; equal weights are never parted."""
    weights = (0.05, 0.3, 0.05, 0.3, 0.2, 0.1)
    workload = make_workload(
        adapters=[WorkloadAdapter(str(i), 8, weight) for i, weight in enumerate(weights)]
    )
    found = adapter_popularity(workload)
    assert [found[str(i)] for i in range(6)] == ["cold", "hot", "cold", "hot", "warm", "warm"]
    even = make_workload(adapters=[WorkloadAdapter(n, 8, 0.5) for n in "ab"])
    assert set(adapter_popularity(even).values()) == {"even", "base"}


def test_run_must_be_of_the_workload() -> None:
    """A request that is missing, or counted twice, would move every share."""
    run, workload = make_case()
    with pytest.raises(ValueError, match="the run has 5 requests, workload 'made' 6"):
        figures(replace(run, requests=run.requests[:-1]), workload, BOUNDS)
    with pytest.raises(ValueError, match="place 1 of the run holds request 0"):
        figures(replace(run, requests=(run.requests[0],) * 6), workload, BOUNDS)
    with pytest.raises(ValueError, match="no requests"):
        figures(make_run(), replace(workload, requests=()), BOUNDS)
    stranger = make_workload([make_request(adapter="z")])
    with pytest.raises(ValueError, match="'z'"):
        judge_run(make_run(make_stamps(0, 0.0, (1.0,))), stranger, BOUNDS)


def make_table() -> UnloadedTable:
    return UnloadedTable(
        (
            UnloadedCell(256, 8, ttft_s=0.4, tpot_s=0.02, num_runs=20),
            UnloadedCell(64, 8, ttft_s=0.1, tpot_s=0.01, num_runs=20),
            UnloadedCell(64, 0, ttft_s=0.05, tpot_s=0.005, num_runs=20),
        )
    )


@pytest.mark.parametrize(("tokens", "ttft_s"), [(1, 0.5), (64, 0.5), (65, 2.0), (256, 2.0)])
def test_multiples_go_by_length_and_rank(tokens: int, ttft_s: float) -> None:
    """A long prompt on the bound of a short one would miss on an idle server."""
    rule = MultipleBounds(make_table(), ttft_x=5, tpot_x=3)
    request = make_request(prompt=(Piece(1, tokens),))
    assert bounds_of(request, 8, rule).ttft_s == pytest.approx(ttft_s)


def test_own_bounds_win() -> None:
    rule = MultipleBounds(make_table(), ttft_x=5, tpot_x=3)
    assert bounds_of(make_request(ttft_s=9.0), 8, rule) == Bounds(9.0, 0.03)
    assert bounds_of(make_request(tpot_s=9.0), 8, rule) == Bounds(0.5, 9.0)
    # Nothing needs to be known of a request that brings both.
    assert bounds_of(make_request(ttft_s=1.0, tpot_s=2.0), 128, rule) == Bounds(1.0, 2.0)


def test_what_is_sent_is_what_is_judged() -> None:
    """A server that is told other bounds than it is judged by is judged unjustly."""
    rule = MultipleBounds(make_table(), ttft_x=5, tpot_x=3)
    workload = make_workload([make_request(0.0), make_request(1.0, BASE)])
    told = with_bounds(workload, rule)
    assert [(r.ttft_s, r.tpot_s) for r in told.requests] == [(0.5, 0.03), (0.25, 0.015)]
    assert all_bounds(told, FixedBounds(77, 77)) == all_bounds(workload, rule)


def test_unmeasured_request_has_no_bounds() -> None:
    """A guess would decide who meets and who does not."""
    with pytest.raises(ValueError, match=r"rank is 16; unloaded figures exist for \[0, 8\]"):
        make_table().cell(10, 16)
    with pytest.raises(ValueError, match=r"the prompt has 300 tokens.*end at 256"):
        make_table().cell(300, 8)


def test_lag_is_of_the_due_instants() -> None:
    """Two of a hundred requests left 80 ms late: P99 is 80 ms."""
    stamps = [make_stamps(i, float(i), sent_s=i + (0.08 if i < 2 else 0.001)) for i in range(100)]
    run = make_run(*stamps)
    found = lag_of(run)
    assert (found.p50_ms, found.p99_ms) == (pytest.approx(1), pytest.approx(80))
    one = lag_of(make_run(*stamps[1:]))
    assert one.max_ms == pytest.approx(80) and one.p99_ms < 50


def test_figures_are_plain_json() -> None:
    """NaN and infinity are no JSON; a reader that refuses them loses the whole file."""
    found = figures(
        make_run(make_stamps(outcome=Outcome.FAILED, end_s=1.0)), make_workload(), BOUNDS
    )
    text = json.dumps(plain(found), allow_nan=False)
    read = json.loads(text)
    assert read["ttft_s"] == {
        "count": 0,
        "mean": None,
        "p50": {"value": None, "low": None, "high": None},
        "p90": {"value": None, "low": None, "high": None},
        "p99": {"value": None, "low": None, "high": None},
    }
    assert read["outcomes"]["failed"] == 1 and read["attainment"]["value"] == 0
