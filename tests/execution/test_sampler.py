"""The sampler: a pure function of logits, seed and position."""

import dataclasses
import math

import pytest
import torch

from lorry.server.execution.penalties import History, adjust
from lorry.server.execution.sampler import Wish, sample
from lorry.server.execution.sampler_device import ON_CPU
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.sampling_builders import theirs


def make_wish(temperature: float, seed: int, position: int) -> Wish:
    return Wish(SamplingParams(temperature=temperature, seed=seed), position)


def draw(logits: torch.Tensor, wishes: list[Wish]) -> list[int]:
    return sample(logits, wishes).tokens_B.tolist()


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    """As transformers does; another choice would be another text."""
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 1.0]])
    assert draw(logits, [make_wish(0, 0, 0)] * 2) == [1, 0]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """The noise is keyed by (seed, position, token), so a batch changes nothing."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    wishes = [
        make_wish(0.7, 3, 11),
        make_wish(0, 0, 5),
        make_wish(1.3, 3, 11),
        make_wish(0.7, 4, 11),
    ] + [make_wish(2.0, 9, i) for i in (1, 2)]
    together = draw(logits, wishes)
    alone = [draw(logits[i : i + 1], [wish])[0] for i, wish in enumerate(wishes)]
    backwards = draw(logits.flip(0), wishes[::-1])[::-1]
    assert together == alone == backwards


def test_a_batch_of_any_size_is_the_same() -> None:
    """Noise is made for some rows at a time; where the cut falls must not matter."""
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    wishes = [make_wish(1.0, i, 2) for i in range(40)]
    together = draw(logits, wishes)
    for elements in (1, 64 * 3, 64 * 39):
        on = dataclasses.replace(ON_CPU, block_elements=elements)
        assert sample(logits, wishes, on=on).tokens_B.tolist() == together


def test_small_differences_of_logits_change_no_token() -> None:
    """The old inverse of the distribution function moved every later boundary of a vocabulary of
    32,000 when one logit moved by the rounding of another batch: up to 1 token in 200 flipped."""
    generator = torch.Generator().manual_seed(2)
    flips = 0
    for first in range(0, 500, 50):
        logits = torch.randn(50, 32_000, generator=generator) * 2
        noise = torch.randn(50, 32_000, generator=generator) * 1e-5
        wishes = [make_wish(1.0, 7, first + i) for i in range(50)]
        ours, theirs = draw(logits, wishes), draw(logits + noise, wishes)
        assert len(set(ours)) > 40
        flips += sum(a != b for a, b in zip(ours, theirs, strict=True))
    assert flips == 0


@pytest.mark.parametrize("by", ["position", "seed"])
def test_tokens_follow_the_softmax(by: str) -> None:
    """Chi-square over 20,000 draws, along one request and over many of them."""
    logits, temperature, num_draws = torch.tensor([2.0, 0.0, 1.0, -3.0]), 1.7, 20_000
    wishes = [
        make_wish(temperature, 1, i) if by == "position" else make_wish(temperature, i, 1)
        for i in range(num_draws)
    ]
    drawn = sample(logits.expand(num_draws, 4), wishes).tokens_B
    expected = torch.softmax(logits.double() / temperature, 0) * num_draws
    counts = torch.bincount(drawn, minlength=4)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 0.1 % point at three degrees of freedom


def test_a_tiny_temperature_is_greedy_and_a_token_of_no_chance_never_comes() -> None:
    """Division by a tiny temperature must not overflow, and zero probability means never."""
    logits = torch.tensor([[100.0, 200.0, 190.0, -math.inf]])
    for position in range(200):
        for temperature in (1e-12, 1e-45, 5e-324):
            assert draw(logits, [make_wish(temperature, 3, position)]) == [1]
        for temperature in (50.0, 1e300):
            assert draw(logits, [make_wish(temperature, 3, position)]) != [3]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_that_are_no_numbers_are_told_apart(temperature: float) -> None:
    """They used to become token 0 without a word; a token ruled out by -inf is no error."""
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[0, 1, nan], [0, inf, 1], [-inf] * 3, [-inf, 1, 0], [nan, inf, 0]])
    found = sample(logits, [make_wish(temperature, 1, 1)] * 5).finite_B
    assert found.tolist() == [False, False, False, True, False]


FILTERED = {
    "top-k": SamplingParams(temperature=1.3, top_k=3),
    "top-p": SamplingParams(temperature=1.3, top_p=0.7),
    "min-p": SamplingParams(temperature=1.3, min_p=0.3),
    "penalties": SamplingParams(
        temperature=1.3, repetition_penalty=1.5, frequency_penalty=0.4, logit_bias=((4, 2.0),)
    ),
    "all": SamplingParams(
        temperature=1.3, top_k=4, top_p=0.9, min_p=0.1, presence_penalty=0.5, repetition_penalty=1.2
    ),
}


@pytest.mark.parametrize("params", FILTERED.values(), ids=FILTERED)
def test_draws_follow_the_filtered_softmax(params: SamplingParams) -> None:
    """Chi-square over 20,000 draws against transformers' scores; what is masked never comes."""
    logits, known = torch.tensor([2.0, 0.0, 1.0, -3.0, 0.5, 1.5]), [0, 2, 5, 5]
    seen, num_draws = History(known, 2).seen(4), 20_000
    wishes = [Wish(dataclasses.replace(params, seed=i), 4, seen) for i in range(num_draws)]
    drawn = sample(logits.expand(num_draws, 6), wishes).tokens_B
    adjusted = logits[None].clone()
    adjust(adjusted, [params], [seen])
    inert = dataclasses.replace(params, repetition_penalty=1.0, logit_bias=())
    chances = torch.softmax(theirs(adjusted, inert, known)[0].double(), 0)
    counts = torch.bincount(drawn, minlength=6)
    possible = chances > 0
    assert not counts[~possible].any()
    expected = chances[possible] * num_draws
    chi_square = float(((counts[possible] - expected) ** 2 / expected).sum())
    # 0.1 % points at so many degrees of freedom.
    assert chi_square < [0, 10.9, 13.9, 16.3, 18.5, 20.6][int(possible.sum()) - 1]


def test_greedy_goes_by_the_adjusted_logits() -> None:
    """A bias or penalty that greedy requests ask for in vain."""
    logits = torch.tensor([[5.0, 4.9, 0.0]]).expand(4, 3)
    seen = History([0, 0], 1).seen(2)
    asked = [
        Wish(SamplingParams(), 2),
        Wish(SamplingParams(repetition_penalty=1.1), 2, seen),
        Wish(SamplingParams(frequency_penalty=0.2), 2, seen),
        Wish(SamplingParams(logit_bias=((2, 99.0),)), 2),
    ]
    assert draw(logits, asked) == [0, 1, 1, 2]
    assert logits.tolist() == [pytest.approx([5.0, 4.9, 0.0])] * 4


def test_a_filter_that_keeps_all_changes_no_draw() -> None:
    """Two ways of writing one request giving two answers."""
    logits = torch.randn(30, 400, generator=torch.Generator().manual_seed(4)) * 2
    plain = [make_wish(0.8, i, 3) for i in range(30)]
    wide = [
        dataclasses.replace(
            wish, sampling=dataclasses.replace(wish.sampling, top_k=400 + i, min_p=1e-30)
        )
        for i, wish in enumerate(plain)
    ]
    assert draw(logits, wide) == draw(logits, plain)
    # One that keeps all beside one that does not.
    tight = Wish(SamplingParams(temperature=50.0, top_k=300, seed=1), 3)
    rows = [Wish(SamplingParams(temperature=50.0, top_k=500, seed=1), 3), tight]
    found = [draw(logits[i : i + 1].expand(2, 400), rows) for i in range(30)]
    assert [both[1] for both in found] == [draw(logits[i : i + 1], [tight])[0] for i in range(30)]
    assert any(one != other for one, other in found)


def test_rows_of_every_kind_do_not_depend_on_their_neighbours() -> None:
    """Rows are sorted into kinds and blocks: where they end up must not matter."""
    logits = torch.randn(60, 500, generator=torch.Generator().manual_seed(6)) * 2
    kinds = [*FILTERED.values(), SamplingParams(), SamplingParams(repetition_penalty=1.4)]
    wishes = []
    for i in range(60):
        known = [(i * j * j) % 500 for j in range(1, 20)]
        params = dataclasses.replace(kinds[i % len(kinds)], seed=i)
        seen = History(known, 6).seen(19) if params.needs_history else None
        wishes.append(Wish(params, 19, seen))
    together = draw(logits, wishes)
    assert together == [draw(logits[i : i + 1], [wish])[0] for i, wish in enumerate(wishes)]
    assert together == draw(logits.flip(0), wishes[::-1])[::-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_any_dtype_are_taken_as_their_fp32_selves(dtype: torch.dtype) -> None:
    """Choosing in bf16 would round what fp32 tells apart."""
    logits = (torch.randn(400, 300, generator=torch.Generator().manual_seed(7)) * 3).to(dtype)
    wishes = [make_wish(0.7, i, 2) for i in range(300)] + [make_wish(0, 0, 2)] * 50
    wishes += [Wish(FILTERED["top-p"], i) for i in range(50)]
    assert draw(logits, wishes) == draw(logits.float(), wishes)
