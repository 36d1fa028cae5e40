"""The live scale of the memory study against its baseline `split`: nobody may be starved by it."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

from lorry.adapters.footprint import adapter_pages, find_targets
from lorry.bench.memory.working_set import working_set
from lorry.bench.memory.workloads import JUDGED_SEEDS, KINDS, LIVE, draw
from lorry.bench.slo.fleet import SHAPE, TARGETS
from lorry.server.config import MemoryConfig
from lorry.server.execution.meta_model import ModelMemory, read_model_memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelMemory:
    """The live servers' model, without its weights."""
    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_width,
        intermediate_size=SHAPE.mlp_width,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        num_key_value_heads=SHAPE.num_kv_heads,
        max_position_embeddings=SHAPE.max_len,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    path = tmp_path_factory.mktemp("base") / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return read_model_memory(path, dtype="bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", JUDGED_SEEDS)
def test_a_split_pool_holds_a_few_adapters(kind: str, seed: int, model: ModelMemory) -> None:
    """With pools in which a fifth was one large adapter, split was 7 times as slow as economy, and
    that was a figure about the scale."""
    workload = draw(kind, LIVE, seed=seed, rate_per_s=5.0)
    targets = find_targets(model.shape.spec.sites, TARGETS)
    pages = {
        one.name: adapter_pages(model.shape, targets, one.rank).num_pages
        for one in workload.adapters
    }
    found = working_set(
        workload, adapter_pages=pages.__getitem__, tokens_per_page=model.shape.tokens_per_page
    )
    room_pages = MemoryConfig(eviction="split").adapter_share_pages(found.pool_pages)
    assert room_pages is not None
    assert room_pages >= 4 * sum(pages.values()) / len(pages)
    assert room_pages >= 2 * max(pages.values())
    longest = max(
        sum(piece.num_tokens for piece in request.prompt) + request.num_new_tokens
        for request in workload.requests
    )
    room_tokens = (found.pool_pages - room_pages) * model.shape.tokens_per_page
    assert longest <= LIVE.scale.max_model_len and 2 * longest <= room_tokens
