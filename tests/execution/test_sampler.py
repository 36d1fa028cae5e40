"""The sampler: a pure function of logits, seed and position."""

import math

import pytest
import torch

from lorry.server.execution import sampler
from lorry.server.execution.sampler import Wish, gumbel, sample

CPU = torch.device("cpu")


def draw(logits: torch.Tensor, wishes: list[Wish]) -> list[int]:
    return sample(logits, wishes).tokens_B.tolist()


def correlation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    """As transformers does; another choice would be another text."""
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 1.0]])
    assert draw(logits, [Wish(0, 0, 0)] * 2) == [1, 0]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """The noise is keyed by (seed, position, token), so a batch changes nothing."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    wishes = [Wish(0.7, 3, 11), Wish(0, 0, 5), Wish(1.3, 3, 11), Wish(0.7, 4, 11)] + [
        Wish(2.0, 9, i) for i in (1, 2)
    ]
    together = draw(logits, wishes)
    alone = [draw(logits[i : i + 1], [wish])[0] for i, wish in enumerate(wishes)]
    backwards = draw(logits.flip(0), wishes[::-1])[::-1]
    assert together == alone == backwards


def test_a_batch_of_any_size_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is made for some rows at a time; where the cut falls must not matter."""
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    wishes = [Wish(1.0, i, 2) for i in range(40)]
    together = draw(logits, wishes)
    for elements in (1, 64 * 3, 64 * 39):
        monkeypatch.setattr(sampler, "NOISE_ELEMENTS", elements)
        assert draw(logits, wishes) == together


def test_small_differences_of_logits_change_no_token() -> None:
    """The old inverse of the distribution function moved every later boundary of a vocabulary of
    32,000 when one logit moved by the rounding of another batch: up to 1 token in 200 flipped."""
    generator = torch.Generator().manual_seed(2)
    flips = 0
    for first in range(0, 500, 50):
        logits = torch.randn(50, 32_000, generator=generator) * 2
        noise = torch.randn(50, 32_000, generator=generator) * 1e-5
        wishes = [Wish(1.0, 7, first + i) for i in range(50)]
        ours, theirs = draw(logits, wishes), draw(logits + noise, wishes)
        assert len(set(ours)) > 40
        flips += sum(a != b for a, b in zip(ours, theirs, strict=True))
    assert flips == 0


@pytest.mark.parametrize("by", ["position", "seed"])
def test_tokens_follow_the_softmax(by: str) -> None:
    """Chi-square over 20,000 draws, along one request and over many of them."""
    logits, temperature, num_draws = torch.tensor([2.0, 0.0, 1.0, -3.0]), 1.7, 20_000
    wishes = [
        Wish(temperature, 1, i) if by == "position" else Wish(temperature, i, 1)
        for i in range(num_draws)
    ]
    drawn = sample(logits.expand(num_draws, 4), wishes).tokens_B
    expected = torch.softmax(logits.double() / temperature, 0) * num_draws
    counts = torch.bincount(drawn, minlength=4)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 0.1 % point at three degrees of freedom


def test_the_noise_is_gumbels_to_the_tail() -> None:
    """Mean, spread and tail of 2 million numbers; a short tail would starve rare tokens."""
    noise = gumbel([(seed, 3) for seed in range(64)], 32_768, CPU).double()
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.577216) < 4 * 1.2825 / math.sqrt(noise.numel())
    assert abs(float(noise.std()) - math.pi / math.sqrt(6)) < 0.005
    for level in (0.0, 3.0, 8.0):
        chance = -math.expm1(-math.exp(-level))
        seen = float((noise > level).double().mean())
        assert abs(seen - chance) < 5 * math.sqrt(chance * (1 - chance) / noise.numel())


def test_seed_position_and_token_each_matter() -> None:
    """Seeds that differ by one must not give runs that look alike, nor steps of one run, nor a
    run be another one moved along."""
    noise = gumbel([(s, p) for s in range(30) for p in range(30)], 256, CPU).view(30, 30, 256)
    assert len(noise.unique()) > 0.99 * noise.numel()
    bound = 4 / math.sqrt(29 * 30 * 256)
    assert abs(correlation(noise[1:], noise[:-1])) < bound
    assert abs(correlation(noise[:, 1:], noise[:, :-1])) < bound
    assert abs(correlation(noise[:, :, 1:], noise[:, :, :-1])) < bound
    assert abs(correlation(noise[1:, :, 1:], noise[:-1, :, :-1])) < bound
    assert abs(correlation(noise[1:, 1:], noise[:-1, :-1])) < bound


def test_tensors_make_the_numbers_of_the_generator() -> None:
    """int64 stands in for uint64: an arithmetic shift instead of a logical one would show here,
    and make a device that shifts otherwise say other tokens."""
    key = sampler._key(2**64 - 1, 12)
    states = [(key + step * sampler._GOLDEN) % 2**64 for step in range(1, 200)]
    found = sampler._finalize(torch.tensor([sampler._signed(state) for state in states]))
    expected = [sampler._mix((state - sampler._GOLDEN) % 2**64) for state in states]
    assert [bits % 2**64 for bits in found.tolist()] == expected
    # SplitMix64's own first numbers from state 1234567, as its authors' code gives them.
    assert sampler._mix(1234567) == 6457827717110365317


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64 - 1, 2**70 + 5])
def test_any_seed_is_taken(seed: int) -> None:
    """Seeds come from clients: none may break the arithmetic, and the top bits count."""
    noise = gumbel([(seed, 0), (seed % 2**64, 0), (seed ^ (1 << 63), 0)], 100, CPU)
    assert noise.isfinite().all()
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_a_tiny_temperature_is_greedy_and_a_token_of_no_chance_never_comes() -> None:
    """Division by a tiny temperature must not overflow, and zero probability means never."""
    logits = torch.tensor([[100.0, 200.0, 190.0, -math.inf]])
    for position in range(200):
        for temperature in (1e-12, 1e-45, 5e-324):
            assert draw(logits, [Wish(temperature, 3, position)]) == [1]
        for temperature in (50.0, 1e300):
            assert draw(logits, [Wish(temperature, 3, position)]) != [3]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_that_are_no_numbers_are_told_apart(temperature: float) -> None:
    """They used to become token 0 without a word; a token ruled out by -inf is no error."""
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[0, 1, nan], [0, inf, 1], [-inf] * 3, [-inf, 1, 0], [nan, inf, 0]])
    found = sample(logits, [Wish(temperature, 1, 1)] * 5).finite_B
    assert found.tolist() == [False, False, False, True, False]
