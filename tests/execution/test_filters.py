"""Filters and penalties against transformers' processors, on the same logits, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.server.execution import filters
from lorry.server.execution.batch import StepRow
from lorry.server.execution.filters import keep_likely, scale
from lorry.server.execution.penalties import Histories, History, Seen, adjust
from lorry.server.execution.sampler import Wish, sample
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.sampling_builders import theirs


def ours(logits_BV: Tensor, params: list[SamplingParams], seen: list[Seen | None]) -> Tensor:
    scores_BV = logits_BV.clone()
    adjust(scores_BV, params, seen)
    scaled_BV = scale(scores_BV, scores_BV.amax(1, keepdim=True), params)
    return keep_likely(scaled_BV, params)


def assert_same_scores(found_V: Tensor, expected_V: Tensor) -> None:
    """Bit for bit, but for which of equals at the edge stay: their sort is not stable."""
    assert torch.equal(found_V.sort().values, expected_V.sort().values)
    differ = found_V != expected_V
    if bool(differ.any()):
        edge = found_V[found_V > -math.inf].min()
        assert torch.equal(torch.maximum(found_V, expected_V)[differ], edge.expand(differ.sum()))
        # Of equals the later ids stay.
        kept = (found_V == edge).nonzero()[:, 0]
        away = (differ & (found_V == -math.inf)).nonzero()[:, 0]
        assert int(away.max()) < int(kept.min())


def make_logits(kind: str, vocab: int, seed: int, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, vocab, generator=generator)
    match kind:
        case "wide":
            return normal * 6
        case "ties":  # few distinct values, as in bf16
            return (normal * 2).round()
        case "flat":
            return torch.zeros(rows, vocab)
        case "huge":
            return normal * 1e30
        case _:  # tokens ruled out by the model itself
            normal[:, 1:][normal[:, 1:] < 0] = -math.inf
            return normal


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-3, 0.3, 0.7, 1.0, 1.9, 50.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 1e-9, 0.05, 0.5, 0.9, 0.999, 1 - 1e-7]),
    min_p=st.sampled_from([0.0, 0.0, 1e-6, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.6, 2.0]),
    logit_bias=st.sampled_from([(), ((0, -100.0),), ((0, 3.5), (1, -0.25))]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    params=PARAMS,
    kind=st.sampled_from(["wide", "ties", "flat", "huge", "ruled-out"]),
    vocab=st.sampled_from([2, 3, 17, 255, 256, 257, 700]),
    seed=st.integers(0, 1000),
)
def test_scores_equal_transformers(params: SamplingParams, kind: str, vocab: int, seed: int):
    """A request would be answered from another distribution than the one it asked for."""
    logits = make_logits(kind, vocab, seed)
    known = [(seed * 7 + i * i) % vocab for i in range(9)]
    found = ours(logits, [params], [History(known, 4).seen(9)])[0]
    expected = theirs(logits, params, known)[0]
    assert (found > -math.inf).any()
    assert_same_scores(found, expected)


@pytest.mark.parametrize("kind", ["wide", "ties", "flat"])
def test_a_large_vocabulary_takes_the_short_way_to_the_same_edge(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top-p by the head of the distribution leaving another set than the sorted whole."""
    logits = make_logits(kind, 32_000, 3, rows=8) * (0.7 if kind == "ties" else 0.4)
    sorted_rows: list[int] = []
    by_sorting = filters._find_edge_by_sorting
    monkeypatch.setattr(
        filters,
        "_find_edge_by_sorting",
        lambda scores, rest: sorted_rows.append(len(scores)) or by_sorting(scores, rest),
    )
    for top_p in (0.02, 0.3, 0.9):
        params = SamplingParams(temperature=0.5, top_p=top_p)
        found = ours(logits, [params] * 8, [None] * 8)
        for i in range(8):
            assert_same_scores(found[i], theirs(logits[i : i + 1], params, [0])[0])
    if kind == "wide":
        assert sum(sorted_rows) < 24, "the short way was never taken"


def test_rows_of_one_call_are_rows_alone() -> None:
    """A neighbour's k or p, or the tokens it has seen, leaking into a row."""
    logits = make_logits("wide", 300, 5, rows=12)
    generator = torch.Generator().manual_seed(1)
    params, seen = [], []
    for i in range(12):
        params.append(
            SamplingParams(
                temperature=0.5 + 0.1 * i,
                top_k=3 + 9 * i,
                top_p=0.99 - 0.05 * i,
                min_p=0.001 * i + 0.001,
                repetition_penalty=1 + 0.1 * i,
                frequency_penalty=0.1 * i,
                presence_penalty=0.5 - 0.1 * i,
                logit_bias=((i, 1.5), (7, -2.0)),
            )
        )
        known = torch.randint(300, (5 + i,), generator=generator).tolist()
        seen.append(History(known, 3).seen(len(known)))
    together = ours(logits, params, seen)
    for i in range(12):
        alone = ours(logits[i : i + 1], params[i : i + 1], seen[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def written_out(logits: list[float], params: SamplingParams, answer: list[int]) -> list[float]:
    """OpenAI's definition, as its documentation writes it, in fp32."""
    scores: list[float] = []
    for token, logit in enumerate(logits):
        count = np.float32(answer.count(token))
        score = np.float32(logit) - np.float32(params.frequency_penalty) * count
        scores.append(float(score - np.float32(params.presence_penalty) * (count > 0)))
    return scores


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frequency=st.sampled_from([0.0, 0.1, -2.0, 1.7]),
    presence=st.sampled_from([0.0, 0.3, -2.0]),
    answer=st.lists(st.integers(0, 19), max_size=40),
)
def test_frequency_and_presence_count_the_answer_alone(
    frequency: float, presence: float, answer: list[int]
) -> None:
    """A penalty for words of the prompt, or one that is paid once too often."""
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
    logits = make_logits("wide", 20, len(answer))
    known = [0, 1, 1, 2, 3, *answer]
    scores = logits.clone()
    adjust(scores, [params], [History(known, 5).seen(len(known))])
    assert scores[0].tolist() == written_out(logits[0].tolist(), params, answer)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(known=st.lists(st.integers(0, 300), min_size=1, max_size=400), data=st.data())
def test_a_history_kept_is_a_history_counted_anew(known: list[int], data: Any) -> None:
    """Counts that drift from step to step: a token counted twice, or forgotten."""
    num_prompt = data.draw(st.integers(1, len(known)))
    history = History(known, num_prompt)
    for num_known in sorted(data.draw(st.lists(st.integers(num_prompt, len(known)), max_size=5))):
        found = history.seen(num_known)
        counts = dict(zip(found.token_ids.tolist(), found.counts.tolist(), strict=True))
        answer = known[num_prompt:num_known]
        assert counts == {token: answer.count(token) for token in set(known[:num_known])}


def test_extremes_leave_numbers_and_a_token() -> None:
    """A penalty or bias that makes infinity of a logit would end the request as broken."""
    logits = torch.tensor([[3e38, -3e38, 1.0, -math.inf]])
    for penalty in (1e-30, 1e30):
        params = SamplingParams(
            temperature=0.9, repetition_penalty=penalty, frequency_penalty=2.0, top_p=0.5
        )
        seen = History([0, 1, 2, 3, 1], 4).seen(5)
        scores = logits.clone()
        adjust(scores, [params], [seen])
        assert scores[0, :3].isfinite().all() and scores[0, 3] == -math.inf
        for temperature in (1e-45, 1e-3, 1e300):
            one = SamplingParams(
                temperature=temperature, repetition_penalty=penalty, top_k=2, top_p=0.4, min_p=0.2
            )
            token = sample(logits, [Wish(one, 9, seen)])
            assert token.finite_B.all() and int(token.tokens_B) != 3


def test_a_temperature_that_overflows_keeps_the_order() -> None:
    """Infinity for the likeliest token, and NaN for its chance: a filter would let all pass."""
    logits = torch.tensor([[200.0, 100.0, 199.0], [-300.0, -200.0, -201.0]])
    for params in (SamplingParams(1e-40, top_p=0.5), SamplingParams(1e-40, min_p=0.5)):
        found = ours(logits, [params] * 2, [None] * 2)
        assert found.tolist() == [[0.0, -math.inf, -math.inf], [-math.inf, 0.0, -math.inf]]


def make_step_row(row: int, known: list[int], **params: float) -> StepRow:
    return StepRow(
        row, (), 1, len(known) - 1, (), -1, True, SamplingParams(**params), known, num_prompt=2
    )


def test_histories_belong_to_requests_not_rows() -> None:
    """A new request in an old row, or one that comes back, penalised for another's words."""
    histories = Histories()

    def look(*rows: StepRow) -> list[dict[int, float] | None]:
        return [
            one and dict(zip(one.token_ids.tolist(), one.counts.tolist(), strict=True))
            for one in histories.look(rows)
        ]

    first, second = [1, 2, 3], [1, 2, 3]
    asks = {"presence_penalty": 1.0}
    plain = make_step_row(1, [1, 2, 9])
    assert look(make_step_row(0, first, **asks), plain) == [{1: 0, 2: 0, 3: 1}, None]
    first.append(3)
    assert look(plain, make_step_row(0, first, **asks)) == [None, {1: 0, 2: 0, 3: 2}]
    second.append(4)  # as long, in the same row, in the very next step
    assert look(make_step_row(0, second, **asks)) == [{1: 0, 2: 0, 3: 1, 4: 1}]
    first += [5]
    assert look(make_step_row(7, first, **asks)) == [{1: 0, 2: 0, 3: 2, 5: 1}]
    # Whoever is not in a step is let go of.
    look(plain)
    assert not histories._by_row
