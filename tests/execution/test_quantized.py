"""Checkpoints that transformers' own quantizers read: served where the proof holds, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lorry.bench.exactness.cases import find_case
from lorry.server.config import ModelConfig
from lorry.server.errors import ModelRefused
from lorry.server.execution.model import fingerprint_of, load_model, prepare_model
from lorry.server.execution.selfproof import prove
from lorry.server.execution.sites import LoraLinear, LoraSite, find_sites
from lorry.tests.builders import make_llama
from lorry.tests.execution_builders import tiny_llama

MX_BLOCK = 32  # values that share a scale, two in a byte


def _save_mxfp4(directory: Path) -> None:
    """A tiny GPT-OSS as it is published: experts in 4 bits with a scale a block, the rest plain."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(find_case("gpt_oss").config())
    model.save_pretrained(directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width_in, width_out = weights.pop(name).shape
        blocks = torch.randint(256, (experts, width_out, width_in // MX_BLOCK, MX_BLOCK // 2))
        weights[f"{name}_blocks"] = blocks.to(torch.uint8)
        weights[f"{name}_scales"] = torch.full(blocks.shape[:-1], 124, dtype=torch.uint8)
    save_file(weights, path, metadata={"format": "pt"})
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["self_attn", "router", "embed_tokens", "lm_head"],
    }
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mxfp4_experts_are_served_unpacked(tmp_path: Path, dtype: str) -> None:
    """GPT-OSS is published like this; without its kernels transformers unpacks the experts."""
    _save_mxfp4(tmp_path)
    loaded = load_model(ModelConfig(str(tmp_path), dtype=dtype))
    assert loaded.image_spec.dtype == dtype
    assert all(isinstance(site, LoraLinear) for site in find_sites(loaded.model).values())
    assert "off by" in prove(loaded)


def _save_fp8(directory: Path) -> None:
    """A tiny Llama as DeepSeek and others publish theirs: fp8 blocks with a scale each."""
    make_llama(directory, intermediate_size=64)
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if "_proj.weight" in name]:
        weight = weights[name]
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        weights[name] = (weight / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(weights, path, metadata={"format": "pt"})
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [64, 64],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    path.write_text(json.dumps(config))


def test_fp8_blocks_are_served_unpacked(tmp_path: Path) -> None:
    """Without a GPU transformers unpacks them; the weights must be the scaled ones."""
    plain = load_file(make_llama(tmp_path / "plain", intermediate_size=64) / "model.safetensors")
    _save_fp8(tmp_path / "m")
    loaded = load_model(ModelConfig(str(tmp_path / "m"), dtype="float32"))
    name = "model.layers.1.mlp.up_proj"
    served: Tensor = loaded.model.get_submodule(name).weight  # pyright: ignore
    assert float((served - plain[f"{name}.weight"]).abs().max()) < 0.07 * float(served.abs().max())
    prove(loaded)


class PackedLinear(nn.Linear):
    """int8 with a scale a row, and a forward of its own, as weight-only quantizers have it."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        scale_O1 = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        packed = (plain.weight.detach() / scale_O1).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scale_O1 = nn.Buffer(scale_O1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return nn.functional.linear(input, self.weight.to(input.dtype) * self.scale_O1)


def _packed(dtype: torch.dtype) -> Any:
    model: Any = tiny_llama().to(dtype)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, PackedLinear(child))
    return model


def test_packed_weights_prove_themselves_in_fp32() -> None:
    """A linear that stays a linear adds its adapters to whatever its own forward says."""
    loaded = prepare_model(_packed(torch.float32))
    sites = find_sites(loaded.model)
    assert isinstance(sites[0], PackedLinear)
    assert isinstance(sites[0], LoraSite)
    assert fingerprint_of(loaded.model) == loaded.fingerprint
    assert "off by" in prove(loaded)


def test_packed_weights_are_not_proven_against_nonsense() -> None:
    """In 16 bits the proof needs the model in fp32; packed numbers cast to fp32 mean nothing, and
    a bound taken from them let everything pass."""
    with pytest.raises(ModelRefused, match="--dtype float32"):
        prove(prepare_model(_packed(torch.bfloat16)))
