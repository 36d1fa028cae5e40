"""Lengths: percentiles of the tables, clients with lengths of their own, and what fits a model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.fit import Scale, fit_lengths, fit_pieces
from lorry.bench.workload.lengths import (
    Fixed,
    FromTable,
    Lengths,
    LogNormal,
    PoolLengths,
    UniformLengths,
    draw_lengths,
)
from lorry.bench.workload.pools import POOLS, pool_shares
from lorry.bench.workload.quantiles import TABLES
from lorry.bench.workload.records import Piece
from lorry.bench.workload.report import PUBLISHED
from lorry.tests.workload_builders import agrees, quantiles_agree, share_agrees

COUNT = 50_000


def draw(lengths: Lengths, *, count: int = COUNT, weights: np.ndarray | None = None, seed: int = 9):
    weights = np.ones(1) if weights is None else weights
    rng = np.random.default_rng(seed)
    adapters = rng.choice(len(weights), count, p=weights)
    prompt, answer = draw_lengths(lengths, rng, adapters=adapters, weights=weights)
    assert prompt.min() >= 1
    assert answer.min() >= 1
    return prompt, answer, adapters


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_percentiles_come_out(name: str) -> None:
    prompt, answer, _ = draw(FromTable(name))
    assert quantiles_agree(prompt, TABLES[name].prompt) == []
    assert quantiles_agree(answer, TABLES[name].answer) == []


@pytest.mark.parametrize("name", TABLES)
def test_a_table_and_the_published_percentiles_are_of_one_trace(name: str) -> None:
    """Two lists, typed apart."""
    for table, published in (
        (TABLES[name].prompt, PUBLISHED[name].prompt),
        (TABLES[name].answer, PUBLISHED[name].answer),
    ):
        for share in (50, 90, 95, 99):
            assert table.tokens[table.percentiles.index(share)] == getattr(published, f"p{share}")


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_mean_is_near_the_traces(name: str) -> None:
    """Straight lines between 16 percentiles overrate a long tail: the mean by up to 12 %, the
    standard deviation by up to 25 % (azure-code's answers; the others stay below 7 %).
    """
    published = PUBLISHED[name]
    for drawn, table, trace in zip(
        draw(FromTable(name)),
        (TABLES[name].prompt, TABLES[name].answer),
        (published.prompt, published.answer),
        strict=False,
    ):
        # Tokens are whole: half a token at most of a mean.
        assert abs(drawn.mean() - table.mean) < 5 * drawn.std() / math.sqrt(COUNT) + 0.5
        assert drawn.mean() == pytest.approx(trace.mean, rel=0.12)
        assert drawn.std() == pytest.approx(trace.sd, rel=0.25)


def test_prompt_and_answer_know_nothing_of_each_other() -> None:
    prompt, answer, _ = draw(FromTable("azure-conv"))
    assert abs(np.corrcoef(prompt, answer)[0, 1]) < 5 / math.sqrt(COUNT)


def test_fixed_and_uniform_lengths() -> None:
    prompt, answer, _ = draw(Fixed(17, 3), count=10)
    assert set(prompt) == {17}
    assert set(answer) == {3}
    for column in draw(UniformLengths())[:2]:
        assert (column.min(), column.max()) == (8, 511)  # 512 is not drawn, as in S-LoRA
        assert agrees(column.mean(), 259.5, sd=504 / math.sqrt(12), count=COUNT)


def test_lmsys_lengths_have_the_percentiles_they_were_fitted_to() -> None:
    """Prompts: P90 about 256 and P99 about 1,000; answers: mean 214.5."""
    prompt, answer, _ = draw(LogNormal())
    assert share_agrees((prompt <= 256).mean(), 0.90, COUNT)
    assert share_agrees((prompt <= 1024).mean(), 0.99, COUNT)
    assert agrees(answer.mean(), 214.5, sd=214.5 * math.sqrt(math.e - 1), count=COUNT)


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_requests_have_its_percentiles_however_unequal_its_clients(name: str) -> None:
    figures = POOLS[name]
    shares = pool_shares(figures, figures.num_clients)
    prompt, answer, _ = draw(PoolLengths(name), weights=shares / shares.sum())
    for drawn, spread in ((prompt, figures.prompt), (answer, figures.answer)):
        for share, tokens in ((0.5, spread.p50), (0.9, spread.p90), (0.99, spread.p99)):
            upto, below = (drawn <= tokens + 0.5).mean(), (drawn < tokens - 0.5).mean()
            assert share_agrees(min(max(share, below), upto), share, COUNT)
        # Three percentiles and a mean are not always those of one smooth curve.
        assert drawn.mean() == pytest.approx(spread.mean, rel=0.12)


@pytest.mark.parametrize("name", ["m-large", "m-mid"])
def test_a_pools_clients_differ_as_published(name: str) -> None:
    """P10, P50 and P90 over the clients of their own mean prompts: within 30 % each, as the mean
    over 24 draws, which differ by as much. Without clients of their own all three would be the
    mean of the pool.
    """
    figures = POOLS[name]
    assert figures.client_means is not None
    shares = pool_shares(figures, figures.num_clients)
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        # As many requests of each client, so that each one's mean is known.
        adapters = np.tile(np.arange(len(shares)), 100)
        prompt, _ = draw_lengths(PoolLengths(name), rng, adapters=adapters, weights=shares)
        means = prompt.reshape(100, -1).mean(axis=0)
        found.append(np.percentile(means, (10, 50, 90)))
    logs = np.log(found).mean(axis=0)
    for got, published in zip(logs, figures.client_means, strict=True):
        assert abs(got - math.log(published)) < math.log(1.3)


def test_what_is_too_long_for_the_model_is_cut_and_counted() -> None:
    scale = Scale(prompt_factor=0.5, max_prompt_tokens=70, max_answer_tokens=30, max_model_len=90)
    fitted = fit_lengths(np.array([1, 20, 140, 400]), np.array([5, 25, 40, 90]), scale)
    assert fitted.prompt_tokens.tolist() == [1, 10, 60, 60]
    assert fitted.answer_tokens.tolist() == [5, 25, 30, 30]
    assert (fitted.num_prompts_cut, fitted.num_answers_cut) == (2, 2)


def test_an_answer_leaves_half_of_the_model_to_the_prompt() -> None:
    fitted = fit_lengths(np.array([500]), np.array([500]), Scale(max_model_len=100))
    assert (fitted.prompt_tokens[0], fitted.answer_tokens[0]) == (50, 50)


def test_without_limits_nothing_is_changed() -> None:
    prompt, answer = np.array([5, 100_000]), np.array([7, 100_000])
    fitted = fit_lengths(prompt, answer, Scale())
    assert np.array_equal(fitted.prompt_tokens, prompt)
    assert np.array_equal(fitted.answer_tokens, answer)


def test_pieces_keep_what_they_share_when_scaled() -> None:
    """Two prompts begin with the same three blocks; scaled and cut they still do, and the sum is
    that of the whole scaled at once: the rounding of blocks does not add up.
    """
    blocks = (Piece(1, 512), Piece(2, 512), Piece(3, 512))
    long = fit_pieces((*blocks, Piece(4, 512), Piece(5, 99)), factor=0.35, num_tokens=600)
    short = fit_pieces((*blocks, Piece(6, 70)), factor=0.35, num_tokens=562)
    assert long == (Piece(1, 179), Piece(2, 179), Piece(3, 180), Piece(4, 62))
    assert short == (Piece(1, 179), Piece(2, 179), Piece(3, 180), Piece(6, 24))


def test_a_prompt_of_pieces_never_vanishes() -> None:
    assert fit_pieces((Piece(1, 3),), factor=0.01, num_tokens=1) == (Piece(1, 1),)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FromTable("azure"), "table 'azure'"),
        (lambda: Fixed(0, 1), "prompt_tokens 0"),
        (lambda: UniformLengths((0, 5)), "prompt 0..5"),
        (lambda: PoolLengths("m"), "pool 'm'"),
        (lambda: Scale(prompt_factor=0.0), "prompt_factor 0.0"),
        (lambda: Scale(max_model_len=-1), "max_model_len -1"),
        (
            lambda: fit_lengths(np.array([5]), np.array([5]), Scale(max_model_len=20), taken=30),
            "system_tokens 30: a prompt may have 15",
        ),
    ],
)
def test_bad_settings_are_named(make, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make()
