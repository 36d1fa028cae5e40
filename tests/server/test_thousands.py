"""Thousands of registered adapters, a pool that holds thirty: right answers, bounded memory."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from lorry.tests.builders import (
    EOS_ID,
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
)
from lorry.tests.engine_builders import make_submit, open_store, register, start_engine
from lorry.tests.parity import assert_same_tokens

pytestmark = pytest.mark.slow

NUM_ADAPTERS = 2000
NUM_REQUESTS = 300
POOL_ADAPTERS = 30


def test_2000_registered_adapters_answer_as_peft_does(tmp_path: Path):
    """Memory that follows registered adapters instead of resident ones, or a mix-up among many."""
    model_dir = make_llama(tmp_path / "model", hidden_size=32, intermediate_size=48)
    reference = load_reference(model_dir)
    template = make_adapter(
        reference, tmp_path / "peft", AdapterSpec("t", rank=4, target_modules=("q_proj", "v_proj"))
    )
    config_json = (template / "adapter_config.json").read_bytes()
    shapes = load((template / "adapter_model.safetensors").read_bytes())

    def weights(idx: int) -> bytes:
        generator = torch.Generator().manual_seed(idx)
        return save(
            {name: torch.randn(w.shape, generator=generator) * 0.3 for name, w in shapes.items()},
            {"format": "pt"},
        )

    in_process = start_engine(model_dir, num_pages=1, page_bytes=1 << 20, max_running=16)
    store = open_store(tmp_path / "store", model_dir, in_process.runner)
    cards = [register(store, f"a{idx}", config_json, weights(idx)) for idx in range(NUM_ADAPTERS)]
    assert store.count("default") == NUM_ADAPTERS

    info = in_process.runner.info()
    num_pages = POOL_ADAPTERS * cards[0].num_pages + 16 * 4
    in_process = start_engine(
        model_dir, num_pages=num_pages, page_bytes=info.page_bytes, max_running=16
    )
    rng = random.Random(5)
    submits = [
        make_submit(
            idx,
            [rng.randrange(3, 259) for _ in range(rng.randrange(1, 30))],
            cards[rng.randrange(NUM_ADAPTERS)],
            max_new_tokens=8,
        )
        for idx in range(NUM_REQUESTS)
    ]
    answers = in_process.ask(submits)
    assert in_process.engine.counters.adapter_evictions > NUM_REQUESTS // 2

    for submit, answer in random.Random(6).sample(list(zip(submits, answers, strict=True)), 12):
        assert submit.adapter is not None
        idx = int(submit.adapter.key.name[1:])
        peft_dir = tmp_path / "sample" / str(idx)
        peft_dir.mkdir(parents=True, exist_ok=True)
        (peft_dir / "adapter_config.json").write_bytes(config_json)
        (peft_dir / "adapter_model.safetensors").write_bytes(weights(idx))
        model = load_peft(model_dir, peft_dir)
        prompt = list(submit.prompt_ids)
        expected = generate(model, prompt, 8)
        assert_same_tokens(model, prompt, answer, expected, max_new_tokens=8, stop_ids={EOS_ID})
    assert json.loads(config_json)["r"] == 4
