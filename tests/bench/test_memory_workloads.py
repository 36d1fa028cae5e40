"""The memory study's workloads: what would make its pool or its load another one."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lorry.bench.memory.working_set import WorkingSet, working_set
from lorry.bench.memory.workloads import (
    JUDGED_SEEDS,
    KINDS,
    LIVE,
    SHIFTING,
    TUNING_SEEDS,
    TURNS,
    ZIPF,
    draw,
)
from lorry.bench.workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest


def asked(*requests: tuple[str, tuple[tuple[int, int], ...]]) -> Workload:
    """Requests one second apart: adapter, and (seed, tokens) of the pieces of its prompt."""
    adapters = tuple(WorkloadAdapter(name, 8, 0.5) for name in sorted({one[0] for one in requests}))
    made = tuple(
        WorkloadRequest(float(at), name, tuple(Piece(*piece) for piece in pieces), 4)
        for at, (name, pieces) in enumerate(requests)
    )
    return Workload("test", 0, "", adapters, made)


def found(*requests: tuple[str, tuple[tuple[int, int], ...]], pages: int = 10) -> WorkingSet:
    return working_set(asked(*requests), adapter_pages=lambda _: pages, tokens_per_page=4)


def test_only_what_is_used_again_counts():
    assert found(("a", ((1, 8),)), ("b", ((2, 8),))) == WorkingSet(0, 0, 0)
    assert found(("a", ((1, 8),)), ("a", ((2, 8),))) == WorkingSet(10, 10, 0)


def test_full_pages_of_a_common_beginning_count_once():
    """Seven common tokens are one page of four; a third user adds nothing."""
    prompt = ((1, 7), (2, 5))
    other = ((1, 7), (3, 5))
    assert found(("a", prompt), ("a", other), ("a", other)).prefix_pages == 3
    assert found(("a", prompt), ("a", other)).prefix_pages == 1


def test_kv_of_one_adapter_is_nothing_to_another():
    assert found(("a", ((1, 8),)), ("b", ((1, 8),))).prefix_pages == 0


def test_a_later_page_alike_behind_another_beginning_is_another_page():
    """The key of a page holds all that came before it."""
    one, other = ((1, 4), (9, 4)), ((2, 4), (9, 4))
    assert found(("a", one), ("a", other)).prefix_pages == 0


def test_what_is_over_makes_room_for_what_comes():
    """The most at any instant: two conversations one after the other need the room of one."""
    after = [("a", ((1, 8),)), ("a", ((1, 8),)), ("b", ((2, 8),)), ("b", ((2, 8),))]
    mixed = [after[0], after[2], after[1], after[3]]
    assert found(*after) == WorkingSet(12, 10, 2)
    assert found(*mixed) == WorkingSet(24, 20, 4)
    assert found(*mixed).pool_pages == 12


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_are_what_they_say(kind: str):
    workload = draw(kind, LIVE, seed=TUNING_SEEDS[0], rate_per_s=4.0)
    assert len(workload.requests) == LIVE.num_requests
    by_adapter: dict[str, set[Piece]] = {}
    for request in workload.requests:
        by_adapter.setdefault(request.adapter, set()).add(request.prompt[0])
    heads = [piece for pieces in by_adapter.values() for piece in pieces]
    assert all(len(pieces) == 1 for pieces in by_adapter.values())
    assert len(set(heads)) == len(heads)
    assert {piece.num_tokens for piece in heads} == {LIVE.system_tokens}
    turns = max(request.turn for request in workload.requests)
    assert (turns > 1) == (kind == TURNS)


def test_shifting_shifts_and_zipf_does_not():
    def tops(kind: str) -> list[str]:
        """The favourite of each sixth of the run."""
        workload = draw(kind, LIVE, seed=TUNING_SEEDS[1], rate_per_s=4.0)
        names = [request.adapter for request in workload.requests]
        bounds = [round(part * len(names) / 6) for part in range(7)]
        parts = [names[start:end] for start, end in pairwise(bounds)]
        return [max(set(part), key=part.count) for part in parts]

    assert len(set(tops(ZIPF))) < len(set(tops(SHIFTING)))


def test_nothing_is_judged_on_what_it_was_tuned_on():
    assert not set(JUDGED_SEEDS) & set(TUNING_SEEDS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'chat'"):
        draw("chat", LIVE, seed=1, rate_per_s=1.0)
