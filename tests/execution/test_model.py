"""Loading and preparing: what is refused, what is left as it was, what is derived."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM

from lorry.bench.exactness.cases import find_case
from lorry.server.config import MemoryConfig, ModelConfig, SchedulingConfig, ServerConfig
from lorry.server.errors import ConfigError, ModelRefused
from lorry.server.execution.interface import KvShape
from lorry.server.execution.model import fingerprint_of, load_model, page_geometry, prepare_model
from lorry.server.execution.pool_size import choose_num_pages
from lorry.server.execution.selfproof import prove
from lorry.server.execution.sites import LoraLinear
from lorry.server.execution.start import load_runner
from lorry.tests.builders import make_llama
from lorry.tests.execution_builders import tiny_llama


def test_a_server_starts_from_a_directory(tmp_path: Path) -> None:
    """From files to a proven runner: everything the engine passes on is there."""
    config = ServerConfig(
        ModelConfig(str(make_llama(tmp_path / "m"))),
        MemoryConfig(pool_bytes=1 << 20),
        SchedulingConfig(max_running=4, max_step_tokens=64),
    )
    info = load_runner(config).info()
    assert (info.architecture, info.dtype, info.device) == ("LlamaForCausalLM", "float32", "cpu")
    assert info.tokens_per_page == 16
    assert info.page_bytes == 4 * 2 * 2 * 2 * 16 * 16
    assert info.num_pages == (1 << 20) // info.page_bytes
    assert info.image_spec.page_elements * 4 == info.page_bytes
    assert (info.max_model_len, info.vocab_size, info.eos_ids) == (512, 259, (1,))
    assert "off by" in info.self_proof


def test_sites_are_the_linears_of_the_layers_and_share_their_weights() -> None:
    """Adapters are matched by these names, and a copied weight would double the model."""
    model = tiny_llama()
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    loaded = prepare_model(model)
    sites = loaded.image_spec.sites
    assert [site.name for site in sites] == names  # the head is the last of them
    assert [site.layer for site in sites] == [0] * 7 + [1] * 7 + [2]
    assert (sites[4].in_width, sites[4].out_width) == (64, 96)
    assert all(isinstance(model.get_submodule(site.name), LoraLinear) for site in sites)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights


@pytest.mark.parametrize("label", ["mixtral", "gpt_oss", "gpt2", "opt", "gemma3_text"])
def test_other_families_start_from_their_files(tmp_path: Path, label: str) -> None:
    """Checkpoints are written in another shape than the model has (experts one by one, tied heads
    left out): what transformers puts together must not be taken for missing or left over."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(find_case(label).config()).save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        assert "off by" in prove(load_model(ModelConfig(str(tmp_path), dtype=dtype)))


def test_the_fingerprint_follows_the_weights_not_the_precision() -> None:
    """One checkpoint has one fingerprint in fp32 and bf16; another seed has another."""
    stored = tiny_llama().to(torch.bfloat16)
    in_fp32 = tiny_llama().to(torch.bfloat16).to(torch.float32)
    assert fingerprint_of(stored) == fingerprint_of(in_fp32)
    assert fingerprint_of(stored) != fingerprint_of(tiny_llama(seed=1))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic",
        ),
        ({"attention_chunk_size": 8}, "attention_chunk_size"),
        ({"quantization_config": {"quant_method": "homemade"}}, "quant_method = homemade"),
        ({"num_key_value_heads": 1, "head_dim": 2, "num_hidden_layers": 1}, "makes no page"),
    ],
    ids=["dynamic-rope", "chunked", "quantized", "tiny-page"],
)
def test_what_cannot_be_exact_is_refused(
    tmp_path: Path, change: dict[str, object], word: str
) -> None:
    """Each of these would give wrong answers without an error."""
    directory = make_llama(tmp_path / "m", **(change if "head_dim" in change else {}))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelRefused, match=word):
        load_model(ModelConfig(str(directory)))


def test_a_model_outside_the_interface_is_refused() -> None:
    """Its attention would never see our pages."""
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelRefused, match="attention interface"):
        prepare_model(FalconForCausalLM(config))


@pytest.mark.parametrize("width", [120, 140])
def test_an_output_layer_of_another_vocabulary_is_refused(width: int) -> None:
    """A prompt's token without a logit ended the engine; one that is only said cannot be read."""
    model = tiny_llama()
    model.lm_head = torch.nn.Linear(model.config.hidden_size, width, bias=False)
    with pytest.raises(ModelRefused, match=f"vocab_size = 131: the output layer has {width}") as it:
        prepare_model(model)
    assert it.value.field == "vocab_size"


def test_flags_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """The operator must learn which flag, which value and which limit."""
    directory = str(make_llama(tmp_path / "m"))
    with pytest.raises(ModelRefused, match="no-such-model"):
        load_model(ModelConfig(str(tmp_path / "no-such-model")))
    with pytest.raises(ConfigError, match="--max-model-len is 513, more than the model's own 512"):
        load_model(ModelConfig(directory, max_model_len=513))
    with pytest.raises(ConfigError, match="--device"):
        load_model(ModelConfig(directory, device="abacus"))
    with pytest.raises(ConfigError, match="less than one page"):
        choose_num_pages(1000, 4096)
    assert load_model(ModelConfig(directory, max_model_len=100)).max_model_len == 100


def test_pages_hold_eight_tokens_where_sixteen_would_be_too_large() -> None:
    """Llama-3.1-8B in bf16: 128 KiB a token, so 2 MiB a page; twice the layers still fit."""
    eight_b = page_geometry(KvShape(32, 8, 128, 0, 32), element_bytes=2)
    assert (eight_b.tokens_per_page, eight_b.page_elements * 2) == (16, 2 << 20)
    wide = page_geometry(KvShape(40, 40, 128, 0, 40), element_bytes=2)
    assert wide.tokens_per_page == 8
