"""A model's pages and sites from its config: the same as a real start finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorry.bench.exactness.cases import find_case
from lorry.server.errors import ModelRefused
from lorry.server.execution.meta_model import read_model_memory
from lorry.server.execution.model import prepare_model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 131}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("label", ["llama", "gemma3_text", "gpt2", "opt"])
def test_a_config_alone_says_what_a_start_finds(tmp_path: Path, label: str) -> None:
    """Figures for a model that nobody loaded would be of another layout than the server's."""
    config = find_case(label).config()
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = prepare_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
    found = read_model_memory(tmp_path, dtype="bfloat16")
    assert found.shape.spec.sites == loaded.image_spec.sites
    assert found.shape.spec.fingerprint == loaded.image_spec.fingerprint
    assert (found.shape.page_bytes, found.dtype) == (loaded.page_bytes, "bfloat16")
    assert found.shape.tokens_per_page == loaded.geometry.tokens_per_page
    assert found.head == "lm_head"
    assert found.architecture == loaded.architecture
    assert found.num_parameters == sum(p.numel() for p in loaded.model.parameters())
    assert found.refusal == ""


def test_a_model_that_is_not_served_has_pages_all_the_same(tmp_path: Path) -> None:
    """Whoever asks what it would take is told, and told that it is not served."""
    LlamaConfig(**SMALL, attention_chunk_size=64).save_pretrained(tmp_path)
    found = read_model_memory(tmp_path)
    assert "attention_chunk_size" in found.refusal
    assert len(found.shape.spec.sites) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "neither a folder with a config.json nor such a file"),
        ("{", "does not read as a model's config"),
        ("{}", "does not read as a model's config"),
        (json.dumps({"model_type": "distilbert"}), "makes no language model"),
        (
            json.dumps({"model_type": "llama", "hidden_size": 7}),
            "hidden size .7. is not a multiple",
        ),
    ],
)
def test_what_is_no_model_is_refused_by_name(
    tmp_path: Path, text: str | None, message: str
) -> None:
    """A traceback of another library in place of what is wrong with the file."""
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelRefused, match=message) as caught:
        read_model_memory(path)
    assert "some.json" in str(caught.value)
