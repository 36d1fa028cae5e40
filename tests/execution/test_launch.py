"""Between a step's rows and its tokens the host waits for nothing; flights keep their results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lorry.server.execution.batch import StepCapacity, StepRow
from lorry.server.execution.exact_products import keep_products_exact
from lorry.server.execution.recorder import CudaRecorder, PlainRecorder, waits_forbidden
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.execution_builders import (
    Ask,
    Bench,
    greedy,
    make_bench,
    make_prompt,
    random_peft,
    serve,
    tiny_llama,
)
from lorry.tests.looks import Looks
from lorry.tests.parity import assert_same_tokens

LIMITS = StepCapacity(max_running=6, max_step_tokens=24, max_model_len=64, max_rows=8, max_rank=32)
DRAWN = SamplingParams(temperature=0.8, top_k=9, top_p=0.7, min_p=0.02, seed=4)
GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


def on_gpu(test):
    for mark in GPU:
        test = mark(test)
    return test


def make_steps(bench: Bench) -> list[list[StepRow]]:
    """A step of chunks beside fed tokens, then decode steps with an adapter and without."""
    pages = [bench.take(2) for _ in range(4)]
    plain = SamplingParams()
    prompts = [make_prompt(n, seed=n) for n in (3, 9, 4, 2)]
    slots, wishes = (-1, -1, 0, 0), (plain, DRAWN, plain, replace(DRAWN, top_k=0, min_p=0.0))
    first = [
        StepRow(i, prompt, len(prompt), 0, pages[i], slots[i], i != 1, wishes[i])
        for i, prompt in enumerate(prompts)
    ]
    last = [
        StepRow(i, (), 1, len(prompts[i]), pages[i], slots[i], True, wishes[i]) for i in (0, 2, 3)
    ]
    mixed = [
        last[0],
        StepRow(1, make_prompt(7), 7, 9, pages[1], -1, True, DRAWN),
        *last[1:],
    ]
    after = [replace(row, start=row.start + 1) for row in last]
    return [first, mixed, after, [replace(after[0], start=after[0].start + 1)]]


@pytest.mark.interpreter
def test_a_launch_looks_at_nothing() -> None:
    """A wait for the GPU in the middle of a step, which a CPU would never feel."""
    model = tiny_llama()
    bench = make_bench(
        model,
        limits=replace(LIMITS, max_running=4, max_rank=5),
        num_pages=60,
        kernels="triton",
        recorder=PlainRecorder(),
    )
    bench.put_adapter(0, random_peft(model, rank=5))
    steps = make_steps(bench)
    # Once before: what belongs to a model, and not to a step, is made when it is first needed.
    for rows in steps:
        bench.runner.run(rows)
    staging = bench.runner._buffers.staging  # pyright: ignore[reportPrivateUsage]
    num_misses = staging.num_misses  # the warm-up asks for everything at once
    for rows in steps:
        with Looks() as looks:
            bench.runner.launch(rows)
        assert looks.found == []
    assert staging.num_misses == num_misses, "numbers went another way than by the staging"


def make_gpu_bench(
    dtype: torch.dtype = torch.float32, limits: StepCapacity = LIMITS, **sizes: int
) -> Bench:
    keep_products_exact()
    model: Any = tiny_llama(**({"hidden_size": 256, "num_hidden_layers": 3} | sizes))
    model = model.to(dtype)
    bench = make_bench(
        model,
        limits=limits,
        num_pages=200,
        recorder=CudaRecorder(torch.device("cuda")),
        device="cuda",
    )
    bench.put_adapter(0, random_peft(model, rank=5))
    return bench


@on_gpu
def test_a_launch_waits_for_nothing() -> None:
    """torch's own watch over every wait of the host."""
    bench = make_gpu_bench()
    steps = make_steps(bench)
    for rows in steps:
        bench.runner.run(rows)
    for rows in steps:
        torch.cuda.synchronize()
        with waits_forbidden():
            flight = bench.runner.launch(rows)
        assert set(flight.wait().tokens) == {row.row for row in rows if row.sample}


@on_gpu
def test_two_flights_give_what_one_after_the_other_gives() -> None:
    """The second is prepared while the first computes: numbers on their way, pages and tokens of
    the first must survive it."""
    found: list[list[dict[int, int]]] = []
    for overlapped in (False, True):
        bench = make_gpu_bench()
        steps, results = make_steps(bench), list[dict[int, int]]()
        # So long that the host is ahead by a whole step: some 50 ms.
        torch.cuda._sleep(100_000_000)  # pyright: ignore[reportPrivateUsage]
        up = bench.runner.launch(steps[0])
        for rows in steps[1:]:
            if overlapped:
                torch.cuda._sleep(100_000_000)  # pyright: ignore[reportPrivateUsage]
            else:
                up.wait()
            following = bench.runner.launch(rows)
            results.append(up.wait().tokens)
            up = following
        results.append(up.wait().tokens)
        found.append(results)
    assert found[0] == found[1]


@on_gpu
def test_recorded_steps_give_generate_s_tokens() -> None:
    """A recording that keeps an address or a count of the step it was made of."""
    bench = make_gpu_bench()
    assert "replay CUDA graphs" in bench.runner.info().self_proof
    model = tiny_llama(hidden_size=256, num_hidden_layers=3)
    adapter = random_peft(model, rank=5)
    asks = [
        Ask(make_prompt(3 + 5 * i, seed=i), slot=i % 2 - 1, chunk=4, delay=i, num_new=12 - i)
        for i in range(6)
    ]
    for ask, ours in zip(asks, serve(bench, asks), strict=True):
        reference = model if ask.slot < 0 else adapter
        assert_same_tokens(reference, ask.prompt, ours, greedy(reference, ask.prompt, ask.num_new))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_recordings_pass_their_proof(dtype: torch.dtype) -> None:
    """A bound that sound recordings miss costs every graph; a dtype whose kernels are never run."""
    assert "replay CUDA graphs" in make_gpu_bench(dtype).runner.info().self_proof


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reserved_memory_is_flat_after_the_start(dtype: torch.dtype) -> None:
    """Memory that grows while serving ends a server that was sized to the last page. Sizes are
    such that a step's temporaries have blocks of their own."""
    limits = replace(LIMITS, max_running=16, max_step_tokens=64, max_rows=16)
    bench = make_gpu_bench(
        dtype, limits, hidden_size=2048, num_attention_heads=16, vocab_size=32_000
    )
    pages = bench.take(4)
    reserved_bytes, free_bytes = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    asked = (SamplingParams(), DRAWN, replace(DRAWN, logprobs=5))
    for slot in (-1, 0):
        for sampling in asked:
            for num_tokens in (64, 1, 23, 5, 64, 17, 2, 11, 64):
                ids = [1] * num_tokens
                bench.runner.run([StepRow(0, ids, num_tokens, 0, pages, slot, True, sampling)])
            for num_rows in range(1, limits.max_running + 1):
                rows = range(num_rows)
                bench.runner.run([StepRow(i, [1], 1, i, pages, slot, True, sampling) for i in rows])
    assert torch.cuda.memory_reserved() == reserved_bytes
    assert torch.cuda.mem_get_info()[0] >= free_bytes
