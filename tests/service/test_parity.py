"""Tokens over gRPC equal PEFT's: mixed ranks, base rows, chunks, preemption and eviction.

The session's real server (front end, engine, store worker), whose pool is too small for this
load, and every answer compared with PEFT `generate` under the tie rule. Answers go to their full
length, so that the pool has its full load.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lorry import AsyncClient
from lorry.tests.builders import VOCAB
from lorry.tests.service_shared import MAX_STEP_TOKENS, SPECS, SharedServer

pytestmark = pytest.mark.slow

NUM_NEW = 32
# Requests that start small and grow past the pool together: they must be preempted.
NUM_LONG, LONG_NEW = 12, 150


@dataclass(frozen=True, slots=True)
class Case:
    adapter: str  # "" for the base
    prompt_ids: list[int]
    num_new: int = NUM_NEW


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the server answered, and what it did to answer."""

    shared: SharedServer
    cases: list[Case]
    tokens: list[list[int]]
    preemptions: int
    evictions: int


def make_cases(vocab: int) -> list[Case]:
    """Every adapter and the base, prompts of 1 to 70 tokens, in an order of their own."""
    rng = random.Random(11)
    names = [spec.name for spec in SPECS] + [""]
    lens = [1, 2, 15, 16, 17, 33, 70, 40]
    cases = [
        Case(name, [rng.randrange(3, vocab) for _ in range(lens[(i + j) % len(lens)])])
        for i, name in enumerate(names)
        for j in range(3)
    ]
    rng.shuffle(cases)
    return cases


def make_long_cases(vocab: int) -> list[Case]:
    rng = random.Random(12)
    return [
        Case(("", "r1")[i % 2], [rng.randrange(3, vocab) for _ in range(20)], LONG_NEW)
        for i in range(NUM_LONG)
    ]


async def ask_all(address: str, cases: list[Case]) -> list[list[int]]:
    async with AsyncClient(address, timeout_s=120) as client:
        answers = await asyncio.gather(
            *[
                client.complete(
                    case.prompt_ids,
                    adapter=case.adapter,
                    max_new_tokens=case.num_new,
                    ignore_eos=True,
                )
                for case in cases
            ]
        )
    return [list(answer.token_ids) for answer in answers]


@pytest.fixture(scope="module")
def outcome(shared_server: SharedServer) -> Iterator[Outcome]:
    cases, long_cases = make_cases(VOCAB), make_long_cases(VOCAB)
    before = shared_server.client.stats()
    tokens = asyncio.run(ask_all(shared_server.address, cases))
    tokens += asyncio.run(ask_all(shared_server.address, long_cases))
    after = shared_server.settle()
    yield Outcome(
        shared_server,
        cases + long_cases,
        tokens,
        after.preemptions_total - before.preemptions_total,
        after.adapter_evictions_total - before.adapter_evictions_total,
    )


def test_tokens_equal_pefts(outcome: Outcome):
    """Wrong output without an error: the worst failure there is."""
    num_ties = 0
    for case, ours in zip(outcome.cases, outcome.tokens, strict=True):
        num_ties += outcome.shared.check(
            case.adapter, case.prompt_ids, ours, case.num_new, ignore_eos=True
        )
    print(f"{num_ties} ties in {len(outcome.cases)} answers")
    # None in 377,000 tokens of the fuzzer: more than one is an error that hides as ties.
    assert num_ties <= 1


def test_every_adapter_changes_the_answer(outcome: Outcome):
    """A parity test that would pass with LoRA switched off."""
    for spec in SPECS:
        changed = total = 0
        for case, ours in zip(outcome.cases, outcome.tokens, strict=True):
            if case.adapter == spec.name:
                plain = outcome.shared.expected("", case.prompt_ids, case.num_new)
                changed += sum(a != b for a, b in zip(ours, plain, strict=False))
                total += min(len(ours), len(plain))
        assert changed >= 0.3 * total, f"{spec.name}: {changed} of {total}"


def test_the_pressure_was_real(outcome: Outcome):
    """A parity test that never chunked, preempted or evicted."""
    assert max(len(case.prompt_ids) for case in outcome.cases) > MAX_STEP_TOKENS
    assert outcome.preemptions > 0
    assert outcome.evictions > 0
