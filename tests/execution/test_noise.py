"""The noise of the sampler: a pure function of seed, position and token id."""

import math

import pytest
import torch

from lorry.server.execution import noise as module
from lorry.server.execution.noise import gumbel as gumbel_of
from lorry.server.execution.noise import noise_keys


def gumbel(seeds_and_positions: list[tuple[int, int]], vocab: int) -> torch.Tensor:
    return gumbel_of(torch.tensor(noise_keys(seeds_and_positions))[:, None], torch.arange(vocab))


def correlation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])


def test_the_noise_is_gumbels_to_the_tail() -> None:
    """Mean, spread and tail of 2 million numbers; a short tail would starve rare tokens."""
    noise = gumbel([(seed, 3) for seed in range(64)], 32_768).double()
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
    noise = gumbel([(s, p) for s in range(30) for p in range(30)], 256).view(30, 30, 256)
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
    key = module._key(2**64 - 1, 12)
    states = [(key + step * module._GOLDEN) % 2**64 for step in range(1, 200)]
    found = module._finalize(torch.tensor([module._signed(state) for state in states]))
    expected = [module._mix((state - module._GOLDEN) % 2**64) for state in states]
    assert [bits % 2**64 for bits in found.tolist()] == expected
    # SplitMix64's own first numbers from state 1234567, as its authors' code gives them.
    assert module._mix(1234567) == 6457827717110365317


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64 - 1, 2**70 + 5])
def test_any_seed_is_taken(seed: int) -> None:
    """Seeds come from clients: none may break the arithmetic, and the top bits count."""
    noise = gumbel([(seed, 0), (seed % 2**64, 0), (seed ^ (1 << 63), 0)], 100)
    assert noise.isfinite().all()
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_noise_of_some_tokens_is_that_of_all() -> None:
    """Tokens that a filter leaves drawn with other numbers than without it."""
    keys, ids = torch.tensor(noise_keys([(1, 5), (2, 5)])), torch.tensor([0, 77, 299])
    found = gumbel_of(keys[:, None], ids)
    torch.testing.assert_close(found, gumbel([(1, 5), (2, 5)], 300)[:, ids], rtol=1e-6, atol=0)
