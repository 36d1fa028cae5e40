"""Workload W on disk: a random base, its tokenizer and random adapters, as PEFT saves them.

Owns the cache folder: each workload lies under a name made of all its numbers, put in place
whole, so that a half-written one is never read. Weights are drawn once, in seconds, with a
fixed seed. Called at the start of a run; does not know who will load the files. `make_base` and
`save_adapter` serve the SLO bench's fleet too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from .workload import NUM_SPECIAL, TARGETS, ModelShape, Workload

# Changes with the way files are made, so that older ones are made again.
RECIPE = 2
STORED_DTYPE = torch.bfloat16
# How far an adapter moves a linear's output, beside the base's own of about 1: enough to
# choose other tokens, too little to leave the range in which bfloat16 is exact to a few digits.
LORA_STRENGTH = 0.25


@dataclass(frozen=True, slots=True)
class WorkloadFiles:
    base: Path
    adapters: Mapping[str, Path]  # by name


def prepare_files(workload: Workload, cache: Path) -> WorkloadFiles:
    """The files of this workload, made if they are not there."""
    told = json.dumps({"recipe": RECIPE, **asdict(workload)}, sort_keys=True)
    home = cache / f"workload-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if not home.exists():
        unfinished = home.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        _make(workload, unfinished)
        unfinished.rename(home)
    return WorkloadFiles(home / "base", {name: home / name for name in workload.adapters})


def _make(workload: Workload, home: Path) -> None:
    model = make_base(workload.shape, home / "base", seed=workload.seed)
    for idx, (name, rank) in enumerate(zip(workload.adapters, workload.ranks, strict=True)):
        save_adapter(model, rank, home / name, seed=1000 * workload.seed + idx)


def make_base(shape: ModelShape, folder: Path, *, seed: int) -> Any:
    """The model whose weights and tokenizer are now in `folder`."""
    disable_progress_bar()
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(_config(shape))
    _widen(model)
    model = model.to(STORED_DTYPE).eval()
    model.save_pretrained(folder)
    make_tokenizer(shape.vocab_size).save_pretrained(folder)
    return model


@torch.no_grad()
def _widen(model: Any) -> None:
    """Linears that keep their input's size: with a Llama's own start every answer would be one
    token over and over, which any mistake could give as well.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.normal_(0, parameter.shape[1] ** -0.5)


def _config(shape: ModelShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_len,
        tie_word_embeddings=True,
        # Without them `generate` runs to its length and needs no processor to hold the end back.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Bytes, then made-up pieces up to the vocabulary's size: what is streamed is text."""
    vocab = {"<bos>": 0, "<eos>": 1, "<pad>": 2}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = (f"Ġ{idx}" for idx in range(vocab_size))
    for piece in (*letters, *pieces):
        if len(vocab) == vocab_size:
            break
        vocab.setdefault(piece, len(vocab))
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert len(vocab) == vocab_size > NUM_SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def save_adapter(
    model: Any,
    rank: int,
    folder: Path,
    *,
    seed: int,
    targets: Sequence[str] = TARGETS,
    base_name: str = "workload-w",
) -> None:
    """Random A and B: PEFT's own start has B at zero, which would change no token."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        peft_model: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    scale = config.lora_alpha / rank
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_A" in name:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            elif "lora_B" in name:
                parameter.normal_(0, LORA_STRENGTH / scale * rank**-0.5, generator=generator)
    for saved in peft_model.peft_config.values():
        saved.base_model_name_or_path = base_name
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    peft_model.unload()
