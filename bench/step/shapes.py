"""The models whose steps are timed, as numbers: widths, counts, and the bytes they come to.

Pure. A shape is a published model's own (its config.json), with random weights: a decode step
moves the same bytes whatever they say. Knows no torch; floors.py makes milliseconds of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class StepShape:
    """A decoder of Llama's kind."""

    name: str
    model_type: str  # transformers' family
    num_layers: int
    hidden_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    tied: bool  # whether the head is the embedding table
    qkv_bias: bool = False

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Input and output width of each linear of a layer: what an all-linear adapter changes."""
        hidden, mlp = self.hidden_width, self.mlp_width
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return (
            (hidden, q_width),
            (hidden, kv_width),
            (hidden, kv_width),
            (q_width, hidden),
            (hidden, mlp),
            (hidden, mlp),
            (mlp, hidden),
        )

    @property
    def num_read_weights(self) -> int:
        """Weights that a decode step reads whole: all but the embedding table's other rows.

        A tied head is the table, and is read as the head.
        """
        layer = sum(in_width * out_width for in_width, out_width in self.linears)
        layer += 2 * self.hidden_width  # its norms
        if self.qkv_bias:
            layer += (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        head = self.vocab_size * self.hidden_width
        return self.num_layers * layer + self.hidden_width + head

    @property
    def kv_elements_per_token(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim

    def lora_elements(self, rank: int) -> int:
        """A and B of an adapter of one rank on all linears, padding not counted."""
        return self.num_layers * rank * sum(sum(widths) for widths in self.linears)

    def config_fields(self, max_len: int) -> dict[str, Any]:
        """For transformers' config; nothing of it ever says stop."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": max_len,
            "tie_word_embeddings": self.tied,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        }


SHAPES = {
    shape.name: shape
    for shape in (
        StepShape("llama-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128_256, tied=False),
        StepShape(
            "qwen-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151_936, tied=True, qkv_bias=True
        ),
        # For a look at the bench itself on a CPU.
        StepShape("tiny", "llama", 2, 128, 4, 2, 32, 256, 512, tied=False),
    )
}
