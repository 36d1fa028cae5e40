"""What the simulator says of a few requests, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.bench.sim.clock import SimClock
from lorry.bench.sim.host import SimDisk, SimHostTier
from lorry.bench.sim.link import SimLink
from lorry.bench.sim.parts import adapter_card
from lorry.bench.sim.simulate import simulate
from lorry.bench.slo.stamps import Outcome
from lorry.bench.workload.records import WorkloadAdapter
from lorry.server.memory.link_records import LoadCancelled, Loaded, LoadFailed, LoadOrder
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.policies import FCFS, POLICIES
from lorry.server.scheduling.router import round_robin
from lorry.tests.fakes import make_card
from lorry.tests.sim_builders import SMALL, make_profile, make_wish, make_workload

# A server whose every cost is nothing, but for what would divide by it.
FREE = {name: 0.0 for name in SMALL if name.endswith(("_s", "_s_per_token"))} | {
    "load_bytes_per_s": 1e3,
    "disk_bytes_per_s": 1e3,
    "ttft_s": 1.0,
    "tpot_s": 1.0,
    "max_bypass_s": 5.0,
}


def test_a_request_alone_takes_what_its_steps_cost() -> None:
    """Way in, one step for the prompt, three for the other tokens, way out."""
    profile = make_profile(
        **FREE | {"steps_s": 1.0, "prompt_tokens_s": 0.125, "request_s": 0.25, "reply_s": 0.5}
    )
    run = simulate(
        make_workload(make_wish(2.0, num_prompt=8, num_new=4)),
        profile,
        policy=FCFS,
        all_pieces=True,
    ).run
    (stamps,) = run.requests
    assert stamps.piece_s == (2.25 + 2.0 + 0.5, 5.75, 6.75, 7.75)
    assert stamps.piece_tokens == (1, 1, 1, 1)
    assert (stamps.due_s, stamps.sent_s, stamps.end_s) == (2.0, 2.0, 7.75)
    assert stamps.outcome is Outcome.OK
    assert run.simulated
    assert run.policy == "fcfs"


def test_first_and_last_piece_alone_hold_all_tokens() -> None:
    """Large runs keep two instants a request; figures ask for no more."""
    workload = make_workload(make_wish(0.0, 8, 4), make_wish(0.0, 3, 1))
    whole, ends = (
        simulate(workload, make_profile(), policy=FCFS, all_pieces=kept).run.requests
        for kept in (True, False)
    )
    assert [one.piece_tokens for one in ends] == [(1, 3), (1,)]
    for long, short in zip(whole, ends, strict=True):
        assert (short.first_s, short.last_s) == (long.first_s, long.last_s)


def test_a_cold_adapter_is_read_loaded_and_then_kept() -> None:
    """The first request waits for disk and wire, the next one for neither."""
    profile = make_profile(
        **FREE | {"steps_s": 1.0, "load_s": 0.5, "page_bytes": 1000, "image_stretch": 1.0},
        adapter_bytes_per_rank=1000,
    )
    wishes = (make_wish(0.0, adapter="a0", num_new=1), make_wish(20.0, adapter="a0", num_new=1))
    done = simulate(make_workload(*wishes, ranks=(4,)), profile, policy=FCFS)
    first, second = done.run.requests
    # 4000 bytes at 1000 a second from disk, half a second, the same again over the wire.
    assert first.first_s == 4.0 + 0.5 + 4.0 + 1.0
    assert second.first_s == 21.0
    (replica,) = done.replicas
    assert (replica.loads, replica.host_misses, replica.host_hits) == (1, 1, 0)


def test_a_rank_costs_its_true_bytes() -> None:
    """Two adapters in a step are read once each; a padded law would charge the larger twice."""
    profile = make_profile(
        **FREE | {"adapter_bytes_s": 0.001, "load_bytes_per_s": 1e9, "disk_bytes_per_s": 1e9},
        adapter_bytes_per_rank=100,
        page_bytes=10_000,
    )
    wishes = [make_wish(0.0, 1, 2, adapter=name) for name in ("a0", "a1", "a1")]
    # Loads end together, 3 microseconds on; a prompt of one token is a step like any other.
    done = simulate(make_workload(*wishes, ranks=(8, 16)), profile, policy=FCFS, all_pieces=True)
    gaps = {round(one.piece_s[1] - one.piece_s[0], 3) for one in done.run.requests}
    assert max(gaps) == 2.4  # 800 bytes and 1600, and not 1600 once more


def test_refusals_and_timeouts_are_told_as_a_client_would_see_them() -> None:
    """What can never fit, what finds the line full, and whoever's patience ends."""
    profile = make_profile(max_running=1, max_waiting=1, steps_s=1.0, num_pages=10)
    wishes = [make_wish(0.0, 4, 8), make_wish(0.5, 4, 8), make_wish(0.6, 4, 2), make_wish(0.7, 90)]
    run = simulate(make_workload(*wishes), profile, policy=FCFS, timeout_s=10.0).run
    served, late, refused, too_large = run.requests
    assert served.outcome is Outcome.OK
    assert (late.outcome, late.end_s) == (Outcome.TIMEOUT, 10.5)
    assert refused.outcome is Outcome.REFUSED
    assert refused.error.startswith("RESOURCE_EXHAUSTED: 1 requests are waiting")
    assert too_large.outcome is Outcome.FAILED
    assert math.isnan(too_large.first_s)


@pytest.mark.parametrize("leap", [True, False])
def test_who_has_gone_hears_nothing_more(leap: bool) -> None:
    """Regression: the token of a step that ended after the client's patience was stamped."""
    profile = make_profile(**FREE | {"steps_s": 1.0}, num_pages=100)
    wishes = make_workload(make_wish(0.0, 4, 8), make_wish(2.5, 4, 8))
    run = simulate(wishes, profile, policy=FCFS, timeout_s=3.5, all_pieces=True, leap=leap).run
    for stamps, pieces_s in zip(run.requests, ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), strict=True):
        assert stamps.outcome is Outcome.TIMEOUT
        assert stamps.end_s == stamps.due_s + 3.5
        assert stamps.piece_s == pieces_s


def test_early_abort_answers_whom_it_gives_up() -> None:
    """Under the same load fcfs serves everyone, late, and slora gives some up."""
    profile = make_profile(steps_s=0.5, max_running=2, ttft_s=3.0)
    wishes = make_workload(*(make_wish(0.05 * i, 4, 6) for i in range(20)))
    outcomes = {
        name: [one.outcome for one in simulate(wishes, profile, policy=policy).run.requests]
        for name, policy in POLICIES.items()
    }
    assert set(outcomes["fcfs"]) == {Outcome.OK}
    assert Outcome.REFUSED in outcomes["slora"]


def test_an_overlapped_loop_stamps_a_step_when_it_lands() -> None:
    """Without a cost of its own, planning behind a step gains nothing and loses nothing."""
    workload = make_workload(make_wish(0.0, 8, 10))
    plain, overlapped = (
        simulate(workload, make_profile(overlaps=how), policy=FCFS, all_pieces=True).run.requests
        for how in (0, 1)
    )
    assert overlapped == plain


def test_replicas_share_the_load_a_router_gives_them() -> None:
    """Two replicas and turns: each serves its half as if it were alone."""
    wishes = [make_wish(0.001 * i, 4, 20) for i in range(4)]
    profile = make_profile()
    done = simulate(make_workload(*wishes), profile, policy=FCFS, router=round_robin, replicas=2)
    halves = [
        simulate(make_workload(*wishes[i::2]), profile, policy=FCFS).run.requests for i in (0, 1)
    ]
    assert [one.requests for one in done.replicas] == [2, 2]
    for i, stamps in enumerate(done.run.requests):
        assert replace(stamps, index=i // 2) == halves[i % 2][i // 2]
    with pytest.raises(ValueError, match="replicas is 2"):
        simulate(make_workload(*wishes), profile, policy=FCFS, replicas=2)


def make_order(load_id: int, num_pages: int) -> LoadOrder:
    card = make_card(f"a{load_id}", num_pages=num_pages, image_path=Path())
    card = replace(card, weight_bytes=1000 * num_pages)
    return LoadOrder(load_id, load_id, load_id, card, tuple(range(num_pages)))


def test_loads_cross_one_after_the_other_whoever_is_ready_first() -> None:
    """One that waits for the disk does not hold up one that the host has."""
    clock, tier = SimClock(), SimHostTier(10_000)
    link = SimLink(
        clock, tier, CostModel((0.0,) * 9, 1.0, 0.001), page_bytes=1000, disk_bytes_per_s=500.0
    )
    held = make_order(1, 2)
    tier.keep(held.card.key, 2000)
    link.start(make_order(0, 3))  # 6 s of disk, then 1 s: ready at 7
    link.start(held)  # ready at 1, across at 3
    assert link.next_event_s() == 3.0
    assert link.poll() == []
    clock.reach(3.0)
    assert [event.load_id for event in link.poll()] == [1]
    assert link.next_event_s() == 10.0
    clock.reach(10.0)
    assert [event.load_id for event in link.poll()] == [0]
    assert math.isinf(link.next_event_s())


def test_the_host_tier_keeps_what_was_used_last() -> None:
    """Bytes decide, not numbers; what is larger than all of it is not kept."""
    tier = SimHostTier(5000)
    a, b, c, giant = (make_card(name) for name in ("a", "b", "c", "giant"))
    found: list[bool] = []
    for card in (a, b, a, c, a, b):
        found.append(tier.fetch(card))
        if not found[-1]:
            tier.keep(card.key, 2000)
    assert found == [False, False, True, False, True, False]
    tier.keep(giant.key, 6000)
    assert not tier.contains(giant.key) and tier.stats().items == 2
    tier.forget(b.key)
    assert (tier.stats().bytes, tier.stats().hits, tier.stats().misses) == (2000, 2, 4)


def test_a_load_that_is_called_off_makes_room_on_disk_and_wire() -> None:
    """Before it crosses it ends at once; from then on it goes to its end."""
    clock, tier = SimClock(), SimHostTier(10_000)
    link = SimLink(
        clock, tier, CostModel((0.0,) * 9, 1.0, 0.001), page_bytes=1000, disk_bytes_per_s=500.0
    )
    for load_id in range(3):
        link.start(make_order(load_id, 1))  # read by 2, 4 and 6; across 2 s later
    clock.reach(1.0)
    link.cancel(1)
    assert link.next_event_s() == 1.0
    (event,) = link.poll()
    assert isinstance(event, LoadFailed) and isinstance(event.error, LoadCancelled)
    clock.reach(3.5)
    link.cancel(0)  # it has crossed half of the way
    clock.reach(4.0)
    (event,) = link.poll()
    assert isinstance(event, Loaded) and (event.seconds, event.read_s) == (4.0, 2.0)
    assert link.next_event_s() == 6.0  # 2 was read from 2 s on
    assert link.num_cancelled == 1


def test_disk_reads_ahead_what_is_wanted_when_no_load_waits() -> None:
    """A load goes before what is only wanted, and finds it read if it was."""
    tier = SimHostTier(10_000)
    disk = SimDisk(tier, 500.0)
    a, b, c = (make_card(name).key for name in "abc")
    disk.hint([(a, 1000), (b, 1000)])
    disk.advance(1.0)
    disk.order(c, 1000)
    assert disk.end_s(c) == 4.0  # a is not broken off; b waits
    disk.advance(5.0)
    assert tier.contains(a) and tier.contains(c) and not tier.contains(b)
    disk.hint([])  # b is under way
    disk.advance(100.0)
    assert tier.contains(b)
    disk.order(a, 500)
    disk.call_off(a)  # too late: it is under way
    assert disk.end_s(a) == 101.0


def test_ranks_are_those_of_the_workload() -> None:
    """The gate refuses a rank beyond the server's, as a live one would."""
    profile = make_profile(max_rank=8)
    assert adapter_card(WorkloadAdapter("a0", 16, 1.0), profile).max_rank == 16
    workload = make_workload(make_wish(0.0, adapter="a0"), ranks=(16,))
    (stamps,) = simulate(workload, profile, policy=FCFS).run.requests
    assert stamps.outcome is Outcome.FAILED
    assert "--max-rank 8" in stamps.error
