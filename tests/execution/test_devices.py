"""On every device the whole engine gives PEFT's tokens; `make gpu` runs the CUDA part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorry.bench.zoo.model import adapter_dir, base_dir, load_tokenizer
from lorry.bench.zoo.record import load_answers
from lorry.tests.engine_builders import make_submit, open_store, register, start_engine

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


def answer_zoo(device: str, store_dir: Path) -> list[tuple[list[int], list[int]]]:
    """Ours and PEFT's recorded tokens for every answer of the zoo, all in one batch."""
    page_bytes = 32768
    in_process = start_engine(base_dir(), num_pages=160, page_bytes=page_bytes, device=device)
    info = in_process.runner.info()
    assert info.page_bytes == page_bytes
    store = open_store(store_dir, base_dir(), in_process.runner)
    answers = load_answers()
    cards = {
        name: register(
            store,
            name,
            (adapter_dir(name) / "adapter_config.json").read_bytes(),
            (adapter_dir(name) / "adapter_model.safetensors").read_bytes(),
        )
        for name in sorted({answer.adapter for answer in answers} - {""})
    }
    tokenizer = load_tokenizer()
    submits = [
        make_submit(
            idx,
            tokenizer.encode(answer.prompt),
            cards.get(answer.adapter),
            stop_ids=frozenset(info.eos_ids),
            max_new_tokens=32,
        )
        for idx, answer in enumerate(answers)
    ]
    ours = in_process.ask(submits)
    return [(tokens, list(answer.token_ids)) for tokens, answer in zip(ours, answers, strict=True)]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_zoo_answers_as_peft_does(device: str, tmp_path: Path):
    """A device path that reads pages before they have landed, or sums in another precision."""
    for ours, expected in answer_zoo(device, tmp_path):
        assert ours == expected
