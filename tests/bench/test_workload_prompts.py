"""What prompts say: token ids of pieces, and conversations whose turns begin alike."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.fit import Scale
from lorry.bench.workload.make import make_workload, notes_of
from lorry.bench.workload.moments import moments_of
from lorry.bench.workload.popularity import Zipf
from lorry.bench.workload.records import Piece, Workload, WorkloadRequest
from lorry.bench.workload.sessions import Sessions
from lorry.bench.workload.streams import piece_seeds
from lorry.bench.workload.tokens import prompt_ids
from lorry.tests.workload_builders import agrees, make_settings, share_agrees

PIECES = st.builds(Piece, st.integers(0, 2**53 - 1), st.integers(1, 40))


def test_ids_are_these_for_ever() -> None:
    """Pinned: a replayed file must mean the same prompts on every machine and version."""
    ids = prompt_ids((Piece(7, 5), Piece(2**53 - 1, 3)), vocab_size=32_000)
    assert ids == [2894, 20000, 31720, 26830, 22403, 3652, 2019, 5430]


@given(seed=st.integers(0, 2**53 - 1), short=st.integers(1, 50), more=st.integers(0, 50))
def test_a_shorter_piece_begins_like_a_longer_one(seed: int, short: int, more: int) -> None:
    long_ids = prompt_ids((Piece(seed, short + more),), vocab_size=300)
    assert prompt_ids((Piece(seed, short),), vocab_size=300) == long_ids[:short]


@given(prompt=st.lists(PIECES, min_size=1, max_size=5), vocab_size=st.integers(4, 200_000))
def test_a_prompt_is_its_pieces_in_order_and_within_the_vocabulary(
    prompt: list[Piece], vocab_size: int
) -> None:
    ids = prompt_ids(tuple(prompt), vocab_size=vocab_size)
    parts = [prompt_ids((piece,), vocab_size=vocab_size) for piece in prompt]
    assert ids == list(chain(*parts))
    assert all(3 <= token < vocab_size for token in ids)


def test_ids_are_spread_evenly_and_other_pieces_have_others() -> None:
    count = 40_000
    ids = np.array(prompt_ids((Piece(11, count),), vocab_size=19))
    for token in range(3, 19):
        assert share_agrees((ids == token).mean(), 1 / 16, count)
    # Neighbouring seeds are no neighbours, and neighbouring tokens neither.
    other = np.array(prompt_ids((Piece(12, count),), vocab_size=19))
    assert share_agrees((ids == other).mean(), 1 / 16, count)
    assert share_agrees((ids[1:] == ids[:-1]).mean(), 1 / 16, count - 1)


def test_a_vocabulary_must_hold_more_than_the_reserved_ids() -> None:
    with pytest.raises(WorkloadError, match="vocab_size 3"):
        prompt_ids((Piece(1, 1),), vocab_size=3)


def test_piece_seeds_differ_by_workload_purpose_and_index() -> None:
    """Equal seeds would be prefixes shared by chance, and two workloads sharing a cache."""
    seeds = [
        piece_seed
        for seed in range(20)
        for purpose in ("message", "answer", "system")
        for piece_seed in piece_seeds(seed, purpose, np.arange(500))
    ]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**53


def converse(*, num_requests: int = 1500, scale: Scale | None = None, **sessions) -> Workload:
    return make_workload(
        make_settings(
            num_requests=num_requests,
            popularity=Zipf(0.8),
            base_share=0.1,
            sessions=Sessions(**sessions),
            scale=scale or Scale(),
        )
    )


def by_session(workload: Workload) -> dict[int, list[WorkloadRequest]]:
    found: dict[int, list[WorkloadRequest]] = defaultdict(list)
    for request in workload.requests:
        found[request.session].append(request)
    return found


def test_a_turn_begins_with_the_earlier_prompt_and_an_answer_of_its_length() -> None:
    """The point of it: what a prefix cache can find is there, in tokens."""
    workload = converse(mean_turns=4.0, think_s=5.0, system_tokens=6)
    num_later = 0
    for turns in by_session(workload).values():
        assert [turn.turn for turn in turns] == list(range(len(turns)))
        assert len({turn.adapter for turn in turns}) == 1
        for before, after in pairwise(turns):
            num_later += 1
            assert after.at_s > before.at_s
            assert after.prompt[: len(before.prompt)] == before.prompt
            said, message = after.prompt[len(before.prompt) :]
            assert said.num_tokens == before.num_new_tokens
            assert message.num_tokens == 20
    assert num_later > 500


def test_an_adapters_conversations_share_its_system_prompt_and_nothing_else() -> None:
    workload = converse(mean_turns=2.0, system_tokens=6)
    heads: dict[str, set[Piece]] = defaultdict(set)
    messages: list[Piece] = []
    for request in workload.requests:
        if request.turn == 0:
            head, message = request.prompt
            heads[request.adapter].add(head)
            messages.append(message)
    assert all(len(found) == 1 for found in heads.values())
    assert len({head for found in heads.values() for head in found}) == len(heads) == 9
    assert len({message.seed for message in messages}) == len(messages)


@pytest.mark.parametrize("mean_turns", [1.0, 3.0])
def test_conversations_have_the_wanted_turns(mean_turns: float) -> None:
    """Geometric; those that have not ended when the run does are short of some."""
    workload = converse(num_requests=3000, mean_turns=mean_turns, think_s=1.0)
    lengths = [len(turns) for turns in by_session(workload).values()]
    sd = np.sqrt(mean_turns * (mean_turns - 1))
    assert agrees(float(np.mean(lengths)), mean_turns, sd=sd + 0.05, count=len(lengths))
    assert moments_of(workload).mean_turns == pytest.approx(float(np.mean(lengths)))


def test_users_think_before_they_go_on() -> None:
    """No turn sooner than its user's thought, drawn with the wanted mean; then it waits for the
    next request of its adapter.
    """
    think_s = 30.0
    workload = converse(mean_turns=3.0, think_s=think_s)
    gaps_s = [
        after.at_s - before.at_s
        for turns in by_session(workload).values()
        for before, after in pairwise(turns)
    ]
    assert min(gaps_s) > 0
    # Exponential and a wait on top: a share of at most 1 - exp(-1) below the mean.
    share = float(np.mean(np.array(gaps_s) < think_s))
    assert share < 1 - np.exp(-1)
    assert share > 0.2


def test_instants_adapters_and_lengths_stay_those_of_requests_that_stand_alone() -> None:
    alone = make_workload(make_settings(num_requests=500, popularity=Zipf(0.8), base_share=0.1))
    talking = converse(num_requests=500, mean_turns=4.0)
    for left, right in zip(alone.requests, talking.requests, strict=True):
        assert (left.at_s, left.adapter) == (right.at_s, right.adapter)
        assert left.num_new_tokens == right.num_new_tokens
        assert left.prompt[-1] == right.prompt[-1]


def test_a_conversation_that_does_not_fit_ends_and_is_counted() -> None:
    workload = converse(mean_turns=50.0, think_s=1.0, scale=Scale(max_model_len=120))
    assert all(
        request.num_prompt_tokens + request.num_new_tokens <= 120 for request in workload.requests
    )
    # A turn takes 25 tokens, and the fifth would end at 125.
    assert max(request.turn for request in workload.requests) == 3
    assert notes_of(workload)["conversations_cut_short"] > 100
    assert len(workload.requests) == 1500
    # The fourth prompt has 95 tokens, the fifth would have 120.
    capped = converse(mean_turns=50.0, think_s=1.0, scale=Scale(max_prompt_tokens=119))
    assert max(request.num_prompt_tokens for request in capped.requests) == 95
    assert notes_of(capped)["conversations_cut_short"] > 100


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mean_turns": 0.5}, "mean_turns 0.5"),
        ({"think_s": -1.0}, "think_s -1.0"),
        ({"system_tokens": -1}, "system_tokens -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        Sessions(**settings)  # pyright: ignore[reportArgumentType]
