"""The architectures that are held against PEFT: one tiny random model of each.

Each case is a config that turns its family's peculiarities on, and says which. Owns no code that
runs a model: world.py makes one of a case, the tests and `make exact` walk this list, the
README's table is drawn from it. Configs that are refused are in refused.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCAB = 131
WINDOW = 24  # tokens; shorter than the prompts
FULL, SLIDING = "full_attention", "sliding_attention"
# Said by none of the models: an answer ends at its length. A config may name only some of them.
NO_TOKENS: Mapping[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
SMALL: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide logits: a random model's best two tokens then lie far apart.
    "initializer_range": 0.2,
}


def _none() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Case:
    """One architecture."""

    model_type: str  # transformers' name of the family
    shows: str  # what it has that others have not
    options: Mapping[str, Any] = field(default_factory=_none)  # over SMALL
    name: str = ""  # of the case; the model's type if empty
    small: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    max_model_len: int = 256
    # Factors of test adapters are this much larger than the usual: where norms around a block
    # swallow a change, a small one changes no token.
    loud: float = 1.0

    has_experts: bool = False

    @property
    def label(self) -> str:
        return self.name or self.model_type

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(self.model_type, **{**NO_TOKENS, **self.small, **self.options})


def _gpt2(**options: Any) -> dict[str, Any]:
    names = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96}
    return {"vocab_size": VOCAB, "initializer_range": 0.2, **names, **options}


def _rope(rope_type: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10000.0, **options}


_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}


def _longrope(original: int) -> dict[str, Any]:
    """Phi-3 with longrope; `original` is the length of its pretraining."""
    return {
        "hidden_size": 192,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "original_max_position_embeddings": original,
        "rope_parameters": _rope(
            "longrope",
            short_factor=[1.0 + 0.05 * i for i in range(48)],
            long_factor=[2.0 + 0.5 * i for i in range(48)],
        ),
    }


# The table of the blueprint first, in its order; then others of use.
CASES: tuple[Case, ...] = (
    Case(
        "llama",
        "grouped queries, head size 64, scaled RoPE",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "rope_parameters": _rope(
                "llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    Case(
        "mistral",
        "sliding window, head size 128",
        {
            "sliding_window": WINDOW,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
        },
    ),
    Case(
        "qwen2",
        "bias on q, k, v; window from the second layer on",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Case("qwen3", "norms on queries and keys, head size not hidden / heads", {"head_dim": 32}),
    Case(
        "gemma",
        "head size 256, one KV head, tied head, scaled embedding",
        {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    Case(
        "gemma2",
        "softcap of scores and logits, windows in turn, own score scale",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 1.0,
            # Between norms a scaled embedding, tied to the head, would repeat the last token.
            "initializer_range": 0.08,
        },
        loud=2.0,
    ),
    Case(
        "gemma3_text",
        "windows by layer, each kind with a RoPE of its own",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL],
            "initializer_range": 0.08,
        },
        loud=2.0,
    ),
    Case(
        "phi",
        "head size 80, partial RoPE, attention and MLP side by side, bias at the head",
        {
            "hidden_size": 160,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.4,
        },
    ),
    Case(
        "phi3",
        "fused qkv_proj and gate_up_proj, head size 96",
        {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    Case(
        "granite",
        "factors on embedding, scores, residuals and logits",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    Case("olmo2", "norms after the blocks, and over all queries and keys at once"),
    Case(
        "cohere",
        "attention and MLP side by side, interleaved RoPE, scaled logits, tied head",
        {"use_qk_norm": True, "logit_scale": 0.25},
    ),
    Case("starcoder2", "bias everywhere, LayerNorm, window", {"sliding_window": WINDOW}),
    Case(
        "stablelm",
        "head size 112, partial RoPE, LayerNorm on each query and key head",
        {
            "hidden_size": 224,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "use_qkv_bias": True,
            "qk_layernorm": True,
        },
    ),
    Case(
        "gpt_neox",
        "fused query_key_value by head, partial RoPE, attention and MLP side by side",
    ),
    Case("gpt2", "Conv1D, fused c_attn, learned positions, tied head", small=_gpt2()),
    Case(
        "mixtral",
        "mixture of experts, window",
        {**_EXPERTS, "sliding_window": WINDOW},
        has_experts=True,
    ),
    Case(
        "gpt_oss",
        "attention sinks, mixture of experts, windows in turn",
        {**_EXPERTS, "head_dim": 16, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
        has_experts=True,
    ),
    Case(
        "opt",
        "learned positions with an offset, linears before and after the layers, tied head",
        {
            "ffn_dim": 96,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
            "init_std": 0.2,
            "pad_token_id": 1,
        },
        loud=2.0,
    ),
    Case(
        "smollm3",
        "layers without positions",
        {"no_rope_layers": [1, 0], "num_hidden_layers": 2},
    ),
    Case(
        "exaone4",
        "windows with RoPE, full attention without, norms after the blocks",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
    ),
    # Beyond the table.
    Case(
        "phi3",
        "longrope, requests within the pretraining's length: short factors",
        _longrope(128),
        name="phi3-longrope-short",
        max_model_len=128,
    ),
    Case(
        "phi3",
        "longrope, requests past the pretraining's length: long factors",
        _longrope(4),
        name="phi3-longrope-long",
    ),
    Case(
        "cohere2",
        "windows with RoPE, full attention without, side by side with the MLP",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL], "logit_scale": 0.25},
    ),
    Case("olmo", "LayerNorm without weights, clipped q, k, v", {"clip_qkv": 2.0}),
    Case(
        "olmo3",
        "windows in turn, norms after the blocks",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
        loud=2.0,
    ),
    Case("glm", "partial interleaved RoPE, fused gate_up_proj", {"head_dim": 16}),
    Case("glm4", "norms before and after the blocks", {"head_dim": 16}),
    Case("nemotron", "squared ReLU, LayerNorm with 1 + weight, partial RoPE"),
    Case("granitemoe", "mixture of experts, factors as in granite", _EXPERTS, has_experts=True),
    Case(
        "qwen2_moe",
        "experts beside a shared one that has a gate of its own",
        {**_QWEN_EXPERTS, "shared_expert_intermediate_size": 48},
        has_experts=True,
    ),
    Case(
        "qwen3_moe",
        "mixture of experts, norms on queries and keys",
        {**_QWEN_EXPERTS, "head_dim": 16},
        has_experts=True,
    ),
    Case(
        "olmoe",
        "mixture of experts, norms over all queries and keys",
        _QWEN_EXPERTS,
        has_experts=True,
    ),
    Case("phimoe", "mixture of experts, bias at the head", _EXPERTS, has_experts=True),
    Case(
        "gpt_bigcode",
        "one KV head in a fused c_attn, learned positions",
        small=_gpt2(multi_query=True),
    ),
    Case(
        "ministral3",
        "scores scaled by position, yarn",
        {
            "head_dim": 16,
            "rope_parameters": _rope(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=32,
                max_position_embeddings=256,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.5,
            ),
        },
    ),
    Case("ernie4_5", "interleaved RoPE"),
    Case("hunyuan_v1_dense", "norms on queries and keys after RoPE", {"head_dim": 16}),
    Case("apertus", "xIELU, no gate, norms on queries and keys"),
    Case("seed_oss", "bias on q, k, v", {"head_dim": 16}),
    Case("persimmon", "fused query_key_value by head, squared ReLU, partial RoPE", loud=3.0),
    Case(
        "biogpt",
        "learned positions, scaled embedding",
        {"initializer_range": 0.1, "scale_embedding": False},
        loud=2.0,
    ),
    Case("jais2", "bias everywhere, squared ReLU, LayerNorm"),
    Case("nanochat", "norm without weights, softcap of logits"),
)


def find_case(label: str) -> Case:
    """By its label; KeyError if there is none."""
    return {case.label: case for case in CASES}[label]
