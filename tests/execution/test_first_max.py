"""The largest and its first place, as torch finds them."""

import math

import pytest
import torch

from lorry.server.execution.first_max import BLOCK, first_max


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK, 5 * BLOCK - 1])
def test_equals_torch(width: int, dtype: torch.dtype) -> None:
    """A tail, a tie between two blocks or a NaN that the short way does not see."""
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(60, width, generator=generator).mul_(2)
    values[20:40] = values[20:40].round()  # ties
    values[40:50] = -math.inf
    for row in range(45, 60):
        place = int(torch.randint(width, (1,), generator=generator))
        values[row, place] = math.nan if row % 2 else math.inf
    values = values.to(dtype)
    top, place = first_max(values)
    expected = values.max(dim=1)
    assert torch.equal(top.nan_to_num(9.0), expected.values.nan_to_num(9.0))
    assert torch.equal(top.isnan(), expected.values.isnan())
    assert torch.equal(place, expected.indices)


def test_takes_the_first_of_equals() -> None:
    """As transformers does; another choice would be another text."""
    assert first_max(torch.zeros(2, 7 * BLOCK + 3))[1].tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_first_of_equals() -> None:
    """Greedy tokens of bf16 logits, which tie, that depend on how a row was shared out."""
    values = torch.randint(3, (33, 128_000), generator=torch.Generator().manual_seed(0)).bfloat16()
    assert first_max(values.cuda())[1].tolist() == first_max(values)[1].tolist()
