"""The zoo's files: build the tiny Llama and its byte tokenizer, save and load them.

Owns the model's size, the token ids and the folder layout (`base/`, `adapters/<name>/`).
Does not know the tasks' answers or how training goes.
Called by training, recording and the tests.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ..plain_model import load_plain
from .tasks import LoraShape

ZOO_DIR = Path(__file__).parent
BASE_LABEL = "lorry-zoo-base"
# Bytes keep their value as token id; the special tokens follow them.
BOS_ID = 256
EOS_ID = 257
PAD_ID = 258
NUM_TOKENS = 259
# What is shipped; everything is computed in float32 from these rounded numbers.
STORED_DTYPE = torch.bfloat16


def base_dir(root: Path = ZOO_DIR) -> Path:
    return root / "base"


def adapter_dir(name: str, root: Path = ZOO_DIR) -> Path:
    return root / "adapters" / name


def make_base() -> LlamaForCausalLM:
    """An untrained base with random weights from torch's current seed."""
    config = LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one byte, one token, and <bos> put in front."""
    # The printable stand-ins that byte-level BPE uses, in byte order.
    stand_ins = _byte_stand_ins()
    vocab = {stand_in: byte for byte, stand_in in enumerate(stand_ins)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _byte_stand_ins() -> list[str]:
    """Printable bytes stand for themselves, the others for characters from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def save_base(model: LlamaForCausalLM, root: Path) -> None:
    """Write model, config, generation defaults and tokenizer; the model's dtype changes."""
    folder = base_dir(root)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    stored: Any = model.to(STORED_DTYPE)  # pyright: ignore[reportArgumentType]
    stored.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def load_base(root: Path = ZOO_DIR) -> LlamaForCausalLM:
    """The shipped base in float32."""
    return load_plain(base_dir(root), dtype=torch.float32)


def load_tokenizer(root: Path = ZOO_DIR) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base_dir(root))


def lora_config(shape: LoraShape) -> LoraConfig:
    """The PEFT config of one adapter: plain LoRA, no dropout, no bias."""
    targets = shape.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=shape.use_rslora,
        rank_pattern=dict(shape.rank_pattern),
        alpha_pattern=dict(shape.alpha_pattern),
        lora_dropout=0.0,
        bias="none",
    )


def save_adapter(model: PeftModel, name: str, root: Path) -> None:
    """Write the adapter as PEFT does, in the stored dtype and without a path of this machine."""
    folder = adapter_dir(name, root)
    for config in model.peft_config.values():
        config.base_model_name_or_path = BASE_LABEL
    stored: Any = model.to(STORED_DTYPE)
    stored.save_pretrained(folder, save_embedding_layers=False)
    # PEFT adds a model card of empty headings.
    (folder / "README.md").unlink(missing_ok=True)
    _sort_config(folder / "adapter_config.json")


def _sort_config(path: Path) -> None:
    """PEFT keeps targets in a set: sorted, two runs write the same file."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(name: str, root: Path = ZOO_DIR) -> PeftModel:
    """The shipped base with one adapter on it, in float32."""
    return PeftModel.from_pretrained(load_base(root), adapter_dir(name, root)).eval()
