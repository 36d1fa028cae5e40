"""The bases that random configs are tried on: tiny, random, in float32, one per kind of linear.

Owns each base, its empty shape for the resolver and the sites and weights an engine would list
for it. Knows no config and no adapter; used by configs.py and by its test.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from ...adapters.image import BaseWeight, ImageSpec, Site
from ...adapters.packing import DTYPES
from ...adapters.resolve import PeftResolver

VOCAB = 61
_PAGE_ELEMENTS = 1024
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Wide enough that an adapter's change is no rounding error.
    "initializer_range": 0.2,
    # They never say stop.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True, slots=True)
class World:
    """One base."""

    name: str
    model: PreTrainedModel  # never changed: users copy it
    resolver: PeftResolver
    spec: ImageSpec

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.spec.sites)

    @property
    def embedding(self) -> str:
        """Last name of the module that embeds the tokens."""
        return self.spec.base_weights[0].name.rpartition(".")[2]


def _llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, **changes}))


def _phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**_SIZES))


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=2))


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


WORLDS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "gpt2": _gpt2,  # Conv1D, and a tied head
    "phi3": _phi3,  # q, k, v in one linear, gate and up in another
    "mixtral": _mixtral,  # PEFT carries configs and names of older transformers over
}


def make_world(name: str) -> World:
    """The same numbers each time."""
    torch.manual_seed(0)
    model = WORLDS[name]().eval()
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = WORLDS[name]()
    spec = ImageSpec(_PAGE_ELEMENTS, "float32", _sites(model), _base_weights(model))
    return World(name, model, PeftResolver(shape), spec)


def _sites(model: PreTrainedModel) -> tuple[Site, ...]:
    """The linears of the decoder layers, layer by layer, and the head last."""
    sites: list[Site] = []
    num_layers = int(model.config.num_hidden_layers)
    for name, module in model.named_modules():
        digits = [part for part in name.split(".") if part.isdigit()]
        layer = int(digits[0]) if digits else num_layers
        if isinstance(module, Conv1D):
            sites.append(Site(name, layer, int(module.weight.shape[0]), int(module.nf)))
        elif isinstance(module, nn.Linear):
            sites.append(Site(name, layer, module.in_features, module.out_features))
    return tuple(sites)


def _base_weights(model: PreTrainedModel) -> tuple[BaseWeight, ...]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: list[BaseWeight] = []
    for name, module in model.named_modules():
        if module in ends:
            weight = cast(torch.Tensor, module.weight).detach()
            hashes = tuple(
                (dtype, hashlib.sha256(_bytes(weight.to(kind))).hexdigest())
                for dtype, kind in DTYPES.items()
            )
            weights.append(BaseWeight(name, tuple(weight.shape), hashes))
    return tuple(weights)


def _bytes(weight: torch.Tensor) -> bytes:
    return weight.contiguous().view(torch.uint8).numpy().tobytes()
