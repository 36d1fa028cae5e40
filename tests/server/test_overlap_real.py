"""The real runner on a tiny model, driven by either loop: the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.adapters.key import AdapterCard
from lorry.server.config import MemoryConfig, ModelConfig, SchedulingConfig, ServerConfig
from lorry.server.engine_process import build_engine
from lorry.server.execution.start import load_runner
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Submit
from lorry.server.seam_ends import LocalEnd
from lorry.tests.builders import AdapterSpec, load_reference, make_adapter, make_llama
from lorry.tests.engine_builders import InProcess, make_submit, open_store, register

pytestmark = pytest.mark.slow

SAMPLINGS = (
    SamplingParams(),
    SamplingParams(temperature=0.9, seed=3),
    SamplingParams(temperature=1.3, seed=4, top_k=20, top_p=0.9),
    SamplingParams(repetition_penalty=1.3),
)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_the_real_runner_says_the_same_to_both_loops(tmp_path: Path, device: str):
    """Tokens fed to the wrong place or row once a step is planned before its forerunner's tokens
    are known, with adapters of several ranks, chunks, seeds and penalties in the batch."""
    model_dir = make_llama(tmp_path / "model")
    config = ServerConfig(
        ModelConfig(str(model_dir), device, "float32", num_threads=1),
        MemoryConfig(pool_bytes=4 << 20),
        SchedulingConfig(max_running=6, max_step_tokens=24, overlap=False),
        debug=True,
    )
    runner = load_runner(config)
    store, reference = open_store(tmp_path / "store", model_dir, runner), load_reference(model_dir)
    cards: list[AdapterCard | None] = [None]
    for rank in (2, 9):
        spec = AdapterSpec(f"r{rank}", rank=rank, seed=rank)
        peft_dir = make_adapter(reference, tmp_path / "peft", spec)
        config_json, weights = (
            (peft_dir / name).read_bytes()
            for name in ("adapter_config.json", "adapter_model.safetensors")
        )
        cards.append(register(store, spec.name, config_json, weights))

    def submits() -> list[Submit]:
        return [
            make_submit(
                i,
                [3 + (7 * i + k) % 250 for k in range(1 + 5 * i % 37)],
                cards[i % 3],
                max_new_tokens=1 + i % 11,
                sampling=SAMPLINGS[0 if i < 6 else i % 4],
            )
            for i in range(18)
        ]

    answers: dict[bool, list[list[int]]] = {}
    for overlaps in (False, True):
        scheduling = SchedulingConfig(max_running=6, max_step_tokens=24, overlap=overlaps)
        end = LocalEnd()
        engine = build_engine(
            end, runner, ServerConfig(config.model, config.memory, scheduling, debug=True)
        )
        answers[overlaps] = InProcess(engine, end, runner).ask(submits())
        while engine.step() == 0.0:
            pass
        assert engine.stats(pages=False).pages_kv == 0
        for slot in range(2):
            runner.detach(slot)
    assert answers[True] == answers[False]
    assert any(answers[True]), "nobody said anything"
