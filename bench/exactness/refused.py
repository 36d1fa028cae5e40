"""Architectures and settings that are refused, each with what stands in the way.

The other half of cases.py: tiny configs, and the words that the refusal must have. Walked by
the tests; the README's list is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .cases import SMALL, VOCAB


def _none() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """One model that must not be served."""

    label: str
    model_type: str
    why: str  # for the README
    words: tuple[str, ...]  # of the message
    options: Mapping[str, Any] = field(default_factory=_none)
    small: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    max_model_len: int = 128

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(self.model_type, **{**self.small, **self.options})


OWN_ATTENTION = "its attention does not go through transformers' interface"
STATE = "layers that keep a state are not paged"
NO_DECODER = "it looks ahead"
_GPT: Mapping[str, Any] = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4}
_OPT: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
}

REFUSED: tuple[RefusedCase, ...] = (
    RefusedCase(
        "dynamic NTK",
        "llama",
        "RoPE that follows the longest request of the batch",
        ("rope_type = dynamic", "longest request"),
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    RefusedCase(
        "chunked attention (Llama 4)",
        "llama4_text",
        "attention in chunks of the text",
        ("attention_chunk_size = 32", "chunked attention"),
        {"attention_chunk_size": 32, "num_local_experts": 2, "intermediate_size_mlp": 64},
    ),
    RefusedCase(
        "KV shared between layers (Gemma 3n)",
        "gemma3n_text",
        "layers that share keys and values",
        ("num_kv_shared_layers = 1",),
        {
            "num_kv_shared_layers": 1,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention"] * 3,
            "activation_sparsity_pattern": None,
        },
    ),
    RefusedCase("Falcon", "falcon", OWN_ATTENTION, ("FalconForCausalLM", "attention interface")),
    RefusedCase(
        "Bloom (ALiBi)", "bloom", OWN_ATTENTION, ("BloomForCausalLM", "attention interface"), _GPT
    ),
    RefusedCase(
        "MPT (ALiBi)",
        "mpt",
        OWN_ATTENTION,
        ("MptForCausalLM", "attention interface"),
        small={"vocab_size": VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 4},
    ),
    RefusedCase("GPT-J", "gptj", OWN_ATTENTION, ("GPTJForCausalLM", "interface"), small=_GPT),
    RefusedCase(
        "BERT",
        "bert",
        NO_DECODER,
        ("BertLMHeadModel", "is_causal = False"),
    ),
    RefusedCase(
        "BART", "bart", "only decoders are served", ("is_encoder_decoder = True",), small=_OPT
    ),
    RefusedCase(
        "cross attention (GPT-2 as a decoder)",
        "gpt2",
        "there is no second sequence",
        ("add_cross_attention = True",),
        {"add_cross_attention": True},
        small=_GPT,
    ),
    RefusedCase(
        "Mamba",
        "mamba",
        STATE,
        ("layer_types = linear_attention",),
        small={"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    RefusedCase(
        "hybrids with linear attention (Qwen3-Next)",
        "qwen3_next",
        STATE,
        ("layer_types = linear_attention",),
        {"layer_types": ["linear_attention", "full_attention"]},
    ),
    RefusedCase(
        "hybrids with convolutions (LFM2)",
        "lfm2",
        STATE,
        ("layer_types = conv",),
        {"layer_types": ["conv", "full_attention"]},
    ),
    RefusedCase(
        "keys and values of different shapes (DeepSeek-V3's latent attention)",
        "deepseek_v3",
        "one KV shape for keys and values of all layers is needed",
        ("DeepseekV3ForCausalLM", "different shapes"),
        {
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
        },
    ),
    RefusedCase(
        "sparse attention (DeepSeek-V3.2)",
        "deepseek_v32",
        "attention over chosen tokens",
        ("index_topk = 2048",),
    ),
    RefusedCase(
        "compressed attention (DeepSeek-V4)",
        "deepseek_v4",
        "attention over compressed tokens",
        ("compress_rates = ",),
        {"index_topk": 0},
    ),
    RefusedCase(
        "KV shapes that differ by layer (Gemma 4)",
        "gemma4_text",
        "one KV shape for keys and values of all layers is needed",
        ("Gemma4ForCausalLM", "different shapes"),
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
        },
    ),
    RefusedCase(
        "a state beside attention (Falcon-H1)",
        "falcon_h1",
        STATE,
        ("layer_types = hybrid",),
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    ),
    RefusedCase(
        "a state without a config field (RWKV)",
        "rwkv",
        STATE,
        ("RwkvForCausalLM", "interface"),
        small={"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2},
    ),
    RefusedCase(
        "two attentions a layer (DiffLlama)",
        "diffllama",
        "each layer must come to the interface once",
        ("DiffLlamaForCausalLM", "num_hidden_layers = 2"),
    ),
    RefusedCase(
        "masks of its own (Doge)",
        "doge",
        "a mask that depends on the text",
        ("brings a mask",),
    ),
    RefusedCase(
        "bidirectional attention (EmbeddingGemma)",
        "gemma3_text",
        NO_DECODER,
        ("use_bidirectional_attention = True",),
        {"use_bidirectional_attention": True, "head_dim": 16},
    ),
    RefusedCase(
        "a window that lives in the mask alone (Phi-3.5-MoE with a window below the context)",
        "phimoe",
        "attention is not told of it",
        ("sliding_window = 64", "a mask of its own"),
        {"sliding_window": 64, "num_local_experts": 2},
    ),
    RefusedCase(
        "longrope that scales by the batch (Phi-3.5-MoE past its pretraining length)",
        "phimoe",
        "the position of one token changes others",
        ("rope_type = longrope", "position of one token"),
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "short_mscale": 1.1,
                "long_mscale": 1.4,
                "original_max_position_embeddings": 64,
            },
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 256,
            "num_local_experts": 2,
        },
    ),
)
