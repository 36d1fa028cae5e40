"""Log-probabilities and penalties through the runner, against PEFT and transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lorry.server.execution.batch import StepRow
from lorry.server.execution.logprobs import token_logprobs
from lorry.server.scheduling.sampling import SamplingParams, TokenLogprobs
from lorry.tests.execution_builders import (
    Ask,
    make_bench,
    make_prompt,
    random_peft,
    serve,
    tiny_llama,
)
from lorry.tests.parity import assert_same_tokens

TOLERANCE = 1e-4


@torch.no_grad()
def reference(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def assert_told(
    found: list[TokenLogprobs], logprobs_TV: torch.Tensor, ids: list[int], num_top: int
) -> None:
    """`logprobs_TV` are those after each place; the first id is that after the first place."""
    assert [one.token_id for one in found] == ids
    for one, row_V in zip(found, logprobs_TV, strict=True):
        assert abs(one.logprob - float(row_V[one.token_id])) < TOLERANCE
        best = row_V.topk(num_top).values.tolist() if num_top else []
        assert [value for _, value in one.top] == pytest.approx(best, abs=TOLERANCE)
        assert all(abs(value - float(row_V[token])) < TOLERANCE for token, value in one.top)
        assert len({token for token, _ in one.top}) == num_top


def test_logprobs_equal_pefts() -> None:
    """What is told of a prompt or answer, by another adapter's numbers, another place's, or
    after a bias: through chunks, in a mixed batch, with an adapter on the head."""
    model = tiny_llama()
    adapters = [
        random_peft(model, rank=5, seed=1),
        random_peft(model, rank=7, seed=2, targets=["q_proj", "lm_head"]),
        random_peft(model, rank=3, seed=3, targets=["lm_head"]),
    ]
    bench = make_bench(model)
    for slot, adapter in enumerate(adapters):
        bench.put_adapter(slot, adapter)
    asks = [
        Ask(
            make_prompt(6 + 5 * i, seed=i),
            slot=slot,
            chunk=5 + i,
            delay=i % 2,
            sampling=SamplingParams(
                temperature=0.9 * (i % 2),
                seed=i,
                top_k=0 if i % 3 else 40,
                logit_bias=((3, 2.0),),
                repetition_penalty=1.2,
                logprobs=[-1, 0, 3][i % 3],
                prompt_logprobs=[2, -1, 0, 1][i % 4],
            ),
        )
        for i, slot in enumerate([-1, 0, 1, 2, 2, 1, -1, 0])
    ]
    serve(bench, asks)
    for ask in asks:
        judge = adapters[ask.slot] if ask.slot >= 0 else model
        logprobs_TV = reference(judge, [*ask.prompt, *ask.tokens])
        count, params = len(ask.prompt), ask.params
        if params.logprobs >= 0:
            rows = logprobs_TV[count - 1 : -1]
            assert_told(ask.logprobs, rows, ask.tokens, params.logprobs)
        else:
            assert not ask.logprobs
        if params.prompt_logprobs >= 0:
            rows = logprobs_TV[: count - 1]
            assert_told(ask.told, rows, ask.prompt[1:], params.prompt_logprobs)
        else:
            assert not ask.told


def test_records_are_log_softmax_of_fp32() -> None:
    """bf16 logits normalised in bf16, blocks that shift rows, more asked than there is."""
    logits = (torch.randn(70, 9000, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    ids = [(i * 131) % 9000 for i in range(70)]
    tops = [i % 4 for i in range(70)]
    found = token_logprobs(logits, ids, tops)
    expected_BV = logits.float().log_softmax(-1)
    for i, one in enumerate(found):
        assert one.token_id == ids[i] and len(one.top) == tops[i]
        assert one.logprob == float(expected_BV[i, ids[i]])
        best = expected_BV[i].topk(tops[i]).values.tolist() if tops[i] else []
        assert [value for _, value in one.top] == best
        assert list(one.top) == sorted(one.top, key=lambda pair: (-pair[1], pair[0]))
    assert len(token_logprobs(torch.zeros(1, 3), [2], [20])[0].top) == 3
    broken = torch.tensor([[0.0, math.inf, 1.0], [0.0, math.nan, 1.0], [-math.inf] * 3])
    assert all(math.isnan(one.logprob) for one in token_logprobs(broken, [0, 0, 0], [0, 1, 2]))


@pytest.mark.parametrize("vocab", [50, 3000])
def test_what_is_told_does_not_depend_on_who_shares_the_step(vocab: int) -> None:
    """Of equal logits, of which bf16 makes many, a neighbour's number decided which are listed."""
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(1)).bfloat16()
    logits[3], logits[4, 5:] = 0.0, -math.inf
    tops = [i % 21 for i in range(40)]
    batched = token_logprobs(logits, [7] * 40, tops)
    for i, (one, top) in enumerate(zip(batched, tops, strict=True)):
        assert token_logprobs(logits[i : i + 1], [7], [top]) == [one]
        values = logits[i].tolist()
        best = sorted(range(vocab), key=lambda token: (-values[token], token))[:top]
        assert [token for token, _ in one.top] == best, "lowest id first"


@torch.no_grad()
def test_greedy_with_a_repetition_penalty_equals_generate() -> None:
    """History that lags a token, forgets the prompt, or is the last request's in this row."""
    model = tiny_llama()
    bench = make_bench(model)
    params = SamplingParams(repetition_penalty=1.35, logit_bias=((7, -3.0), (20, 1.5)))
    for round_ in range(2):  # the same rows, other requests
        asks = [
            Ask(make_prompt(9 + 7 * i, seed=10 * round_ + i), chunk=6, delay=i, num_new=40)
            for i in range(3)
        ]
        for ask in asks[:2]:
            ask.sampling = params
        for ask, ours in zip(asks, serve(bench, asks), strict=True):
            ids = torch.tensor([ask.prompt])
            asked: dict[str, Any] = {}
            if ask.sampling:
                bias = {(token,): value for token, value in params.logit_bias}
                asked = {"repetition_penalty": 1.35, "sequence_bias": bias}
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=40,
                do_sample=False,
                pad_token_id=0,
                **asked,
            )
            theirs = out[0, len(ask.prompt) :].tolist()
            if ask.sampling:
                assert ours == theirs
            else:
                assert_same_tokens(model, ask.prompt, ours, theirs)


def test_a_place_of_the_prompt_that_is_no_number_breaks_its_row() -> None:
    """NaN told as a log-probability."""
    model = tiny_llama()
    bench = make_bench(model)
    with torch.no_grad():
        bench.loaded.model.get_input_embeddings().weight[77] = math.nan
    good, bad = make_prompt(12, seed=1), make_prompt(12, seed=2)
    good = [token if token != 77 else 1 for token in good]
    bad[5] = 77
    ask = SamplingParams(logprobs=0, prompt_logprobs=0)
    rows = [
        bench_row(bench, 0, good, ask),
        bench_row(bench, 1, bad, ask),
        bench_row(bench, 2, bad, ask, count=8),
    ]
    result = bench.runner.run(rows)
    assert set(result.not_finite) == {1, 2}
    assert set(result.tokens) == set(result.logprobs) == {0}
    assert [told.row for told in result.told] == [0]


def bench_row(bench: Any, row: int, prompt: list[int], params: SamplingParams, count: int = 12):
    tell = range(min(count, len(prompt) - 1))
    whole = count == len(prompt)
    return StepRow(
        row,
        prompt[:count],
        count,
        0,
        bench.take(1),
        -1,
        whole,
        params,
        known_ids=prompt,
        num_prompt=len(prompt),
        tell=tell,
    )
