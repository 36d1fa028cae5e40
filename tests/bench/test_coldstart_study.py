"""The order of a study of cold starts, what is sent in it, and what makes a cell no result."""

from __future__ import annotations

from collections import Counter

import pytest

from lorry.bench.coldstart.sizes import (
    AGAIN,
    AUTO,
    BURST,
    CACHED,
    DISK,
    FULL,
    IDEALS,
    LABELS,
    MAX_MODEL_LEN,
    NUM_BYSTANDERS,
    OWN_LINK,
    QUICK,
    S3,
    SINGLE,
    WAIT,
    Row,
    Sizes,
    on_own_link,
)
from lorry.bench.coldstart.study import BURST_LAG_LIMIT_MS, lag_limit_ms, run_study, turns_of
from lorry.bench.coldstart.workloads import (
    WARM,
    cold_names,
    draw_fleet,
    is_bystander,
    make_load,
)
from lorry.bench.slo.lag import LAG_LIMIT_MS
from lorry.bench.slo.rates import mean_rate_per_s
from lorry.bench.workload.records import Workload
from lorry.tests.coldstart_builders import SMALL, FakeWorld, make_study

RATE_PER_S, PREFILL_S = 5.0, 0.1


def load_of(row: Row, sizes: Sizes = FULL) -> Workload:
    fleet = draw_fleet(sizes)
    return make_load(row, sizes, fleet, rate_per_s=RATE_PER_S, prefill_s=PREFILL_S)


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=["full", "quick"])
def test_no_adapter_is_cold_twice_in_a_cell(sizes: Sizes) -> None:
    """The second request of an adapter would find it in the pool."""
    for row in sizes.rows:
        load = load_of(row, sizes)
        cold = [one.adapter for one in load.requests if not is_bystander(one)]
        assert len(set(cold)) == len(cold)
        assert set(cold) == set(cold_names(load))
        assert not set(cold) & set(WARM)
        known = {one.name for one in load.adapters}
        assert {one.adapter for one in load.requests} == known
        assert all(
            one.num_prompt_tokens + one.num_new_tokens <= MAX_MODEL_LEN for one in load.requests
        )
        assert [one.at_s for one in load.requests] == sorted(one.at_s for one in load.requests)


def test_the_sustained_load_comes_at_its_rate() -> None:
    """The same requests at every ratio: only the instants know the capacity."""
    load = load_of(Row(S3, 0.35, 1))
    assert len(load.requests) == FULL.num_s3
    assert mean_rate_per_s(load) == pytest.approx(RATE_PER_S, rel=0.35)
    assert {one.rank for one in load.adapters} == {64}
    assert load.requests == load_of(Row(S3, 3.0, 1)).requests


def test_a_burst_comes_while_others_decode() -> None:
    load = load_of(Row(BURST, 0.35, 1))
    beside = [one for one in load.requests if is_bystander(one)]
    assert len(beside) == NUM_BYSTANDERS and len(load.requests) == NUM_BYSTANDERS + 32
    (due_s,) = {one.at_s for one in load.requests if not is_bystander(one)}
    assert due_s > max(one.at_s for one in beside)


def test_single_cold_requests_have_eight_beside_them_each() -> None:
    """A point whose bystanders have ended says nothing about bystanders."""
    load = load_of(Row(SINGLE, 1.0, 1))
    cold = [idx for idx, one in enumerate(load.requests) if not is_bystander(one)]
    assert len(cold) == len(FULL.points)
    for place, idx in enumerate(cold):
        assert idx == place * (NUM_BYSTANDERS + 1) + NUM_BYSTANDERS
        request, point = load.requests[idx], FULL.points[place]
        assert request.num_prompt_tokens == point.num_prompt_tokens
        assert draw_fleet(FULL).ranks[request.adapter] == point.rank
        assert load.requests[idx - 1].at_s < request.at_s
    gaps = [
        after.at_s - load.requests[idx].at_s
        for idx, after in zip(cold, load.requests[9::9], strict=False)
    ]
    assert min(gaps) > 5 * PREFILL_S


def test_labels_take_turns_and_change_places() -> None:
    """Who always came after the same one would always meet the machine as that one left it."""
    rows = (Row(S3, 1.0, 2), Row(BURST, 1.0, 1))
    turns = list(turns_of(rows, LABELS))
    assert [one.label for one in turns[:6]] == list(LABELS)
    assert [one.label for one in turns[-6:]] == list(LABELS[::-1])
    assert Counter((one.row.part, one.round_idx) for one in turns) == {
        (S3, 0): 6,
        (S3, 1): 6,
        (BURST, 0): 6,
    }


def test_every_label_meets_the_same_load_once_a_round() -> None:
    """Another load would be another question; the same tokens again, another server's cache."""
    world = FakeWorld()
    study = run_study(SMALL, world, tell=lambda _: None)
    assert not study.failures
    assert [link.ratio for link in study.links] == [0.35, 1.0]
    by_turn: dict[tuple[str, int], dict[str, Workload]] = {}
    for cell in study.cells:
        by_turn.setdefault((cell.row.name, cell.round_idx), {})[cell.label] = cell.workload
    assert len(by_turn) == sum(row.num_rounds for row in SMALL.rows)
    for loads in by_turn.values():
        assert sorted(loads) == sorted(LABELS)
        assert all(load == loads[CACHED] for load in loads.values())
    prompts = [load[CACHED].requests[0].prompt for load in by_turn.values()]
    assert len(set(prompts)) == len(prompts)


def test_adapters_are_put_in_their_places_before_every_cell() -> None:
    """A cell would find in the pool what the one before it has loaded."""
    world = FakeWorld()
    rows = (Row(S3, 0.35, 1), Row(DISK, 0.35, 1))
    sizes = Sizes(rows, 6, 4, SMALL.points, 5, 5, 3, labels=(CACHED, WAIT))
    run_study(sizes, world, tell=lambda _: None)
    (stage,) = world.stages
    steps = [
        (how, label)
        for place in ("prepare", "prepare on disk")
        for label in (CACHED, WAIT)
        for how in (place, "settle", "send", "settle")
    ]
    assert stage.asked == steps


def test_a_request_that_was_warm_is_no_cold_start() -> None:
    """A bench of cold starts in which some were none would praise whoever caches."""
    study = make_study(ways={AUTO: ""})
    cells = len([cell for cell in study.cells if cell.label == AUTO])
    assert len(study.failures) == cells
    assert "round 1, s3, auto: 6 requests of cold adapters were warm" in study.failures[0]


def test_a_late_sender_costs_a_repetition_and_no_more() -> None:
    world = FakeWorld(num_late=1)
    study = run_study(SMALL, world, tell=lambda _: None)
    assert not study.failures
    first, second = world.sent[:2]
    assert first == second and first[0] == study.cells[0].label
    assert len(study.cells[0].late) == 1
    failed = make_study(num_late=2).failures
    assert len(failed) == 1 and "send lag P99 is 1000.0 ms" in failed[0]


def test_a_burst_may_leave_one_after_the_other() -> None:
    assert lag_limit_ms(Row(BURST, 1.0, 1)) == BURST_LAG_LIMIT_MS > LAG_LIMIT_MS
    assert lag_limit_ms(Row(S3, 1.0, 1)) == LAG_LIMIT_MS


def test_a_device_with_a_link_of_its_own_has_one_ratio() -> None:
    rows = on_own_link(FULL).rows
    assert {row.ratio for row in rows} == {OWN_LINK}
    assert sorted(row.name for row in rows) == sorted({row.part for row in FULL.rows})
    assert {CACHED, AGAIN} == IDEALS
