"""The step bench: its arithmetic, and that it times steps in which adapters act."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorry.bench.step.command import main, parse
from lorry.bench.step.floors import StepLoad, floor_of
from lorry.bench.step.kernel_times import KernelSpan, digest
from lorry.bench.step.proof import compare
from lorry.bench.step.shapes import SHAPES, StepShape
from lorry.bench.step.timing import BrokenStep
from lorry.server.execution.batch import StepResult
from lorry.server.scheduling.sampling import TokenLogprobs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_a_shape_has_the_weights_of_its_model(shape: StepShape) -> None:
    """A floor of another model's bytes makes every ratio a lie; the model itself is counted."""
    config = AutoConfig.for_model(shape.model_type, **shape.config_fields(1024))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table = model.get_input_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters())
    assert shape.num_read_weights == total - (0 if shape.tied else table.numel())
    linears = [
        (module.in_features, module.out_features)
        for module in model.model.layers[0].modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert sorted(linears) == sorted(shape.linears)


def test_the_published_sizes_of_llama_8b() -> None:
    """Numbers that others have published: 8.03 billion weights, 128 KiB of KV a token, 5 MiB of
    adapter per rank at two bytes."""
    shape = SHAPES["llama-8b"]
    assert shape.num_read_weights == 8_030_261_248 - 128_256 * 4096
    assert shape.kv_elements_per_token * 2 == 128 << 10
    assert shape.lora_elements(1) * 2 == 5 << 20


def test_a_floor_adds_weights_contexts_and_true_ranks() -> None:
    """Adapters padded to the largest rank would make a slow step look good."""
    shape = SHAPES["tiny"]
    floor = floor_of(shape, StepLoad(3, 100, "bfloat16", (4, 16)))
    assert floor.weight_bytes == 2 * shape.num_read_weights
    assert floor.kv_bytes == 3 * 100 * (2 * 2 * 2 * 32) * 2
    assert floor.lora_bytes == 2 * shape.lora_elements(20)
    assert floor.ms(1e9) == pytest.approx(floor.total_bytes / 1e6)


def test_kernels_are_counted_per_step_and_overlap_once() -> None:
    """Two streams at once are no more than all of the time; what is between kernels is idle."""
    spans = [
        KernelSpan("matmul", 0, 40),
        KernelSpan("shrink", 10, 30),
        KernelSpan("matmul", 60, 100),
        KernelSpan("shrink", 90, 100),
    ]
    found = digest(spans, 2)
    assert found is not None
    assert (found.launches, found.span_ms, found.busy_ms) == (2, 0.05, 0.04)
    assert found.idle_share == pytest.approx(0.2)
    assert [(row.name, row.launches, row.us) for row in found.top] == [
        ("matmul", 1, 40),
        ("shrink", 1, 15),
    ]
    assert digest([], 2) is None


def one_row(token_id: int, logprob: float, *top: tuple[int, float]) -> StepResult:
    return StepResult({4: token_id}, logprobs={4: TokenLogprobs(token_id, logprob, top)})


def test_a_step_that_says_something_else_has_no_speed() -> None:
    """Rows with another's context or adapter are as fast as the right ones."""
    right = one_row(7, -1.0, (7, -1.0), (8, -1.1), (9, -3.0))
    compare(right, right, "x")
    compare(one_row(8, -1.1), right, "x")  # a tie, in 16 bits
    wrong = (
        one_row(9, -3.0),  # far from the best
        one_row(5, -1.0),  # nowhere near
        one_row(7, -1.3),  # by chance the same token
        StepResult({}, not_finite=(4,)),
    )
    for step in wrong:
        with pytest.raises(BrokenStep):
            compare(step, right, "x")
    with pytest.raises(BrokenStep, match="not finite"):
        compare(right, StepResult({}, not_finite=(4,)), "x")


def test_more_adapters_than_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The floor would count adapters that no row has."""
    with pytest.raises(SystemExit):
        parse(["--batch", "2", "--adapters", "3"])
    assert "--adapters is 3" in capsys.readouterr().err


def test_a_small_run_gives_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make gpu` reads these names; and adapters that do nothing would fail the run."""
    result = tmp_path / "step.json"
    flags = ["--batch", "6", "--adapters", "6", "--context", "40", "--steps", "1", "--rank", "5"]
    assert main([*flags, "--result", str(result)]) == 0
    document = json.loads(result.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    names = ("decode_step_vs_floor", "lora6_step_vs_floor", "base_only_with_lora_on")
    assert all(document[name] > 0 for name in names)
    base, lora, base_on = document["rows"]
    assert (base["way"], lora["way"], base_on["way"]) == ("base", "lora", "base_on")
    assert lora["lora_bytes"] == 6 * 2 * SHAPES["tiny"].lora_elements(5)
    assert base["lora_bytes"] == base_on["lora_bytes"] == 0
    for row, name in ((base, names[0]), (lora, names[1])):
        assert document[name] == pytest.approx(row["engine_ms"] / row["floor_ms"])
        assert len(row["all_engine_ms"]) >= 5
