"""Tokens over gRPC equal PEFT's: mixed ranks, base rows, chunks, preemption and eviction.

One real server per model (front end, engine, store worker), a pool too small for its load,
and every answer compared with PEFT `generate` under the tie rule.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorry import AsyncClient, Client
from lorry.tests.builders import (
    ALL_LINEAR,
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
)
from lorry.tests.parity import assert_same_tokens
from lorry.tests.service_builders import running_server

pytestmark = pytest.mark.slow

NUM_NEW = 32
# Requests that start small and grow past the pool together: they must be preempted.
NUM_LONG, LONG_NEW = 12, 150
MAX_STEP_TOKENS = 24
SPECS = (
    AdapterSpec("r1", rank=1, seed=1),
    AdapterSpec("r5-attention", rank=5, seed=2, target_modules=ALL_LINEAR[:4]),
    AdapterSpec("r8", rank=8, seed=3, options=(("use_rslora", True),)),
    AdapterSpec("r12-mlp", rank=12, seed=4, target_modules=ALL_LINEAR[4:]),
    AdapterSpec("r24-regex", rank=24, seed=5, target_modules=r".*\.1\..*_proj"),
    AdapterSpec("r32", rank=32, seed=8, target_modules=("q_proj", "v_proj")),
    AdapterSpec("r48", rank=48, seed=9, target_modules=("down_proj",)),
    AdapterSpec("r64", rank=64, seed=6, target_modules="all-linear"),
    AdapterSpec(
        "patterns",
        rank=4,
        seed=7,
        options=(
            ("rank_pattern", {"q_proj": 17, r"layers\.1\.mlp\.up_proj": 33}),
            ("alpha_pattern", {"q_proj": 9}),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    adapter: str  # "" for the base
    prompt_ids: list[int]
    num_new: int = NUM_NEW


@dataclass(frozen=True, slots=True)
class Outcome:
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
                client.complete(case.prompt_ids, adapter=case.adapter, max_new_tokens=case.num_new)
                for case in cases
            ]
        )
    return [list(answer.token_ids) for answer in answers]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model, its adapters, and what a server under pressure answered."""
    home: Path = tmp_path_factory.mktemp("parity")
    # It never says stop: every answer has its full length, and the pool its full load.
    model_dir = make_llama(
        home / "model", tied=request.param, seed=int(request.param), eos_token_id=None
    )
    reference = load_reference(model_dir)
    adapters = [make_adapter(reference, home / "adapters", spec) for spec in SPECS]
    cases = make_cases(reference.config.vocab_size)
    long_cases = make_long_cases(reference.config.vocab_size)
    flags = ["--pool-bytes", "608KiB", "--max-running", "12", "--debug"]
    flags += ["--max-step-tokens", str(MAX_STEP_TOKENS)]
    with running_server(model_dir, home / "store", *flags) as server:
        with Client(server.address) as client:
            for adapter in adapters:
                client.adapters.upload(adapter)
            tokens = asyncio.run(ask_all(server.address, cases))
            tokens += asyncio.run(ask_all(server.address, long_cases))
            stats = client.stats()
        assert server.stop() == 0, "".join(server.output)
    outcome = Outcome(
        cases + long_cases, tokens, stats.preemptions_total, stats.adapter_evictions_total
    )
    return model_dir, home / "adapters", outcome


def test_tokens_equal_pefts(served: Any):
    """Wrong output without an error: the worst failure there is."""
    model_dir, adapters, outcome = served
    num_ties = 0
    for name in ["", *(spec.name for spec in SPECS)]:
        model = load_peft(model_dir, adapters / name) if name else load_reference(model_dir)
        for case, ours in zip(outcome.cases, outcome.tokens, strict=True):
            if case.adapter != name:
                continue
            expected = generate(model, case.prompt_ids, case.num_new)
            num_ties += assert_same_tokens(model, case.prompt_ids, ours, expected)
    print(f"{num_ties} ties in {len(outcome.cases)} answers")
    # None in 377,000 tokens of the fuzzer: more than one is an error that hides as ties.
    assert num_ties <= 1


def test_every_adapter_changes_the_answer(served: Any):
    """A parity test that would pass with LoRA switched off."""
    model_dir, _, outcome = served
    base = load_reference(model_dir)
    for spec in SPECS:
        changed = total = 0
        for case, ours in zip(outcome.cases, outcome.tokens, strict=True):
            if case.adapter == spec.name:
                plain = generate(base, case.prompt_ids, case.num_new)
                changed += sum(a != b for a, b in zip(ours, plain, strict=False))
                total += min(len(ours), len(plain))
        assert changed >= 0.3 * total, f"{spec.name}: {changed} of {total}"


def test_the_pressure_was_real(served: Any):
    """A parity test that never chunked, preempted or evicted."""
    _, _, outcome = served
    assert max(len(case.prompt_ids) for case in outcome.cases) > MAX_STEP_TOKENS
    assert outcome.preemptions > 0
    assert outcome.evictions > 0
