"""Recorded decode steps without a GPU: which are recorded, and what happens where none can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorry.server.execution.batch import StepRow
from lorry.server.execution.graphs import DecodeGraphs, is_decode
from lorry.server.execution.recorder import (
    CannotRecord,
    PlainRecorder,
    Reads,
    Recorder,
    Replay,
)
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.execution_builders import (
    LIMITS,
    Ask,
    greedy,
    make_bench,
    make_prompt,
    serve,
    tiny_llama,
)
from lorry.tests.parity import assert_same_tokens

# Kernels of a CPU know no padding: there is one bucket, of one row.
ALONE = replace(LIMITS, max_running=1)


def make_row(row: int, **fields: Any) -> StepRow:
    settings: dict[str, Any] = {"token_ids": (), "num_tokens": 1, "start": 4, "pages": (1,)}
    settings |= {"adapter_slot": -1, "sample": True, "sampling": SamplingParams()}
    return StepRow(row, **(settings | fields))


class Refusing:
    """A GPU that cannot record this model, or breaks while it does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        work()
        raise self._error


class Stale:
    """A graph that computes the step it was made of, again and again."""

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        work()
        return lambda: None


class Forgetful:
    """A graph that leaves out what is stored."""

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        *_, pool_PE = reads()

        def replay() -> None:
            before = pool_PE.clone()
            work()
            pool_PE.copy_(before)

        return replay


def test_every_bucket_is_recorded_twice_and_the_largest_first() -> None:
    """A bucket that was forgotten would compute another's rows; small recordings before large
    ones would each keep their memory."""
    built: list[tuple[int, bool]] = []

    def build(bucket: int, with_lora: bool) -> Callable[[], torch.Tensor]:
        built.append((bucket, with_lora))
        return lambda: torch.full((bucket, 3), float(2 * bucket + with_lora))

    graphs = DecodeGraphs(PlainRecorder(), max_running=5)
    assert graphs.bucket(1) == 0, "nothing is recorded yet"
    graphs.record(build, list)
    assert built == [(bucket, lora) for bucket in (5, 4, 2, 1) for lora in (False, True)]
    for num_rows, bucket in ((1, 1), (2, 2), (3, 4), (5, 5)):
        assert graphs.bucket(num_rows) == bucket
        for with_lora in (True, False):
            logits_BV = graphs.replay(bucket, with_lora=with_lora)
            assert logits_BV.shape == (bucket, 3)
            assert (logits_BV == 2 * bucket + with_lora).all()
    assert graphs.bucket(6) == 0
    graphs.forget()
    assert graphs.bucket(1) == 0


def test_a_model_that_cannot_be_recorded_is_served_without() -> None:
    """A mixture of experts looks at its own routing; it must start, say why, and be right."""
    model = tiny_llama()
    bench = make_bench(model, recorder=Refusing(CannotRecord("the host looks")))
    assert bench.runner.info().self_proof.endswith("without CUDA graphs: the host looks")
    prompt = make_prompt(9)
    ours = serve(bench, [Ask(prompt)])[0]
    assert_same_tokens(model, prompt, ours, greedy(model, prompt))


def test_a_device_that_breaks_ends_the_start() -> None:
    """Out of memory, or a fault, that passed for a model that cannot be recorded."""
    with pytest.raises(RuntimeError, match="out of memory"):
        make_bench(tiny_llama(), recorder=Refusing(RuntimeError("out of memory")))


def test_recordings_prove_themselves() -> None:
    """A bound or a step drawn so that sound recordings fail would cost every graph."""
    for model in (tiny_llama(), tiny_llama().bfloat16()):
        bench = make_bench(model, limits=ALONE, recorder=PlainRecorder())
        assert "steps of 1 rows replay CUDA graphs, off by" in bench.runner.info().self_proof


@pytest.mark.parametrize("recorder", [Stale(), Forgetful()], ids=["stale", "forgetful"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_recording_is_not_replayed(recorder: Recorder, dtype: torch.dtype) -> None:
    """Decode steps are what a GPU computes all day; the self-proof does not replay any."""
    bench = make_bench(tiny_llama().to(dtype), limits=ALONE, recorder=recorder)  # pyright: ignore[reportArgumentType]
    assert "without CUDA graphs: replayed ones are off by" in bench.runner.info().self_proof


def test_a_step_that_moved_is_seen() -> None:
    """A graph would read what lies where the recorded step lay; calling the function again reads
    the newest."""
    tensors = [torch.zeros(4), torch.zeros(2)]
    calls: list[int] = []
    replay = PlainRecorder().record(lambda: calls.append(1), lambda: tensors)
    replay()
    tensors[1] = tensors[0][:2]
    with pytest.raises(RuntimeError, match="lies elsewhere"):
        replay()
    tensors[1] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="lies elsewhere"):
        replay()
    assert len(calls) == 1


def test_only_plain_decode_steps_are_replayed() -> None:
    """A recording has one place of logits per row: a chunk, or a prompt that is told, has more
    or fewer."""
    assert is_decode([make_row(0), make_row(1, token_ids=(3,))])
    assert not is_decode([make_row(0), make_row(1, token_ids=(3, 4), num_tokens=2)])
    assert not is_decode([make_row(0, sample=False)])
    assert not is_decode([make_row(0, tell=range(1), num_prompt=9)])
