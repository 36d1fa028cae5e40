"""`fan_in_fan_out`, on linears and on GPT-2's Conv1D: what it changes is how PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from lorry.adapters.fields import check_fields
from lorry.adapters.json_object import read_object
from lorry.adapters.resolve import PeftResolver
from lorry.tests.adapters_builders import make_llama_config

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")


def make_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=32)
    config.bos_token_id = config.eos_token_id = 1
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    ("make", "target"),
    [
        (make_gpt2, "c_attn"),
        (lambda: LlamaForCausalLM(make_llama_config()), "k_proj"),
    ],
    ids=["conv1d", "linear"],
)
def test_either_value_is_applied_as_peft_does(
    tmp_path: Path, make: Any, target: str, value: bool
) -> None:
    """The factors of a Conv1D, whose weight lies the other way round, would be swapped."""
    torch.manual_seed(0)
    model: PreTrainedModel = make()
    resolver = PeftResolver(make().to("meta"))
    options: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": [target]}
    peft_model = get_peft_model(model, LoraConfig(**options, fan_in_fan_out=value))
    peft_model.save_pretrained(tmp_path)
    data = (tmp_path / "adapter_config.json").read_bytes()
    # PEFT corrects its own config before it saves; older ones and other tools do not.
    config = read_object(data, what="config", field="config") | {"fan_in_fan_out": value}
    (module, *_) = resolver.resolve(check_fields(config)).modules

    layer = peft_model.base_model.model.get_submodule(module.name)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    lora_a = tensors[f"base_model.model.{module.name}.lora_A.weight"]
    lora_b = layer.lora_B["default"].weight
    hidden = torch.randn(7, lora_a.shape[1])
    added = layer(hidden) - layer.base_layer(hidden)
    torch.testing.assert_close(added, module.scale * hidden @ lora_a.T @ lora_b.T)
