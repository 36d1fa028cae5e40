"""Builders with small defaults, one override a test: models, adapters, requests.

A model is a random tiny Llama in a directory; an adapter is a PEFT directory with a random
`B` (PEFT starts it at zero, which would let every parity test pass with LoRA off).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

EOS_ID = 1
BOS_ID = 0
VOCAB = 259
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_llama(directory: Path, *, tied: bool = False, seed: int = 0, **overrides: Any) -> Path:
    """A random tiny Llama with grouped queries and a byte tokenizer, saved under `directory`."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": 2,
        # Wide logits: a random model's best two tokens then lie far apart, so ties are rare.
        "initializer_range": 0.2,
    }
    settings.update(overrides)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, `<bos>` in front, as real byte-level tokenizers do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<bos>": BOS_ID, "<eos>": EOS_ID, "<pad>": 2}
    vocab.update({letter: idx + 3 for idx, letter in enumerate(alphabet)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    name: str
    rank: int = 8
    target_modules: tuple[str, ...] | str = ALL_LINEAR
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()  # further LoraConfig fields


def make_adapter(model: PreTrainedModel, directory: Path, spec: AdapterSpec) -> Path:
    """A PEFT directory named after the adapter; `model` itself is left as it was."""
    targets = spec.target_modules
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=2 * spec.rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        **dict(spec.options),
    )
    peft_model = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(1000 + spec.seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                width = parameter.shape[1]
                parameter.normal_(0, 0.5 / width**0.5, generator=generator)
    peft_model.save_pretrained(directory / spec.name)
    return directory / spec.name


def load_reference(model_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def load_peft(model_dir: Path, adapter_dir: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_reference(model_dir), str(adapter_dir)).eval()


@torch.no_grad()
def generate(model: Any, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
    """Greedy tokens of the reference, without the prompt."""
    ids = torch.tensor([prompt_ids])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=2,
    )
    return out[0, len(prompt_ids) :].tolist()
