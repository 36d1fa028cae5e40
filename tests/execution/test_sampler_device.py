"""The sampler without a look: what a GPU computes, on a CPU."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from lorry.server.execution.penalties import History
from lorry.server.execution.sampler import Wish, sample
from lorry.server.execution.sampler_device import ON_CPU, SamplerDevice
from lorry.server.execution.staging import Staging
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.looks import Looks

CPU = torch.device("cpu")
PARAMS = [
    SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        repetition_penalty=penalty,
    )
    for seed, (temperature, top_k, top_p, min_p, penalty) in enumerate(
        itertools.product((0.0, 0.8), (0, 7), (1.0, 0.6), (0.0, 0.1), (1.0, 1.3))
    )
]


def make_device(num_cells: int = 10_000) -> SamplerDevice:
    staging = Staging(num_cells, CPU)
    return dataclasses.replace(ON_CPU, may_look=False, staging=staging)


def make_wishes() -> list[Wish]:
    seen = History([1, 2, 2, 9], 3).seen(4)
    return [Wish(one, 4, seen if one.needs_history else None) for one in PARAMS]


def make_logits(vocab: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(PARAMS), vocab, generator=generator).mul_(3).bfloat16()


@pytest.mark.parametrize("vocab", [50, 700])
def test_without_a_look_the_tokens_are_the_same(vocab: int) -> None:
    """A GPU that drew by other rules than a CPU; bf16 logits bring equal scores at every edge."""
    logits, wishes = make_logits(vocab), make_wishes()
    for position in range(20):
        moved = [dataclasses.replace(wish, position=position) for wish in wishes]
        wanted = sample(logits, moved).tokens_B.tolist()
        assert sample(logits, moved, on=make_device()).tokens_B.tolist() == wanted


def test_nothing_is_looked_at_before_the_tokens_are_chosen() -> None:
    """A wait for the GPU in the middle of a step, for one row's filter; the CPU's own way shows
    that the watch can see."""
    logits, wishes = make_logits(700), make_wishes()
    with Looks() as looks:
        sample(logits, wishes, on=make_device())
    assert looks.found == []
    with Looks() as looks:
        sample(logits, wishes)
    assert looks.found


def test_numbers_that_do_not_fit_go_another_way() -> None:
    """A long history beside many rows: slower, and never wrong."""
    logits, wishes = make_logits(50), make_wishes()
    wanted = sample(logits, wishes).tokens_B.tolist()
    assert sample(logits, wishes, on=make_device(num_cells=6)).tokens_B.tolist() == wanted
