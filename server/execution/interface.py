"""The bridge between transformers' attention interface and ours.

Owns the one function registered under `lorry` and its attachment to a model's attention
modules. Knows which arguments of the interface change the numbers (scaling, window, softcap,
sinks); what it might miss, the self-proof finds. Called by transformers inside a forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ...kernels.attention import AttentionOptions
from ..errors import ModelRefused
from .context import StepContext
from .refusals import refused

NAME = "lorry"
OPAQUE_NAME = "lorry_opaque"  # the same, which torch's compiler calls and does not read
_CONTEXT = "lorry_context"


def attention_forward(  # noqa: PLR0917 - the interface's own signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: [1, heads, T, K] each in, [1, T, H, K] out."""
    context: StepContext | None = getattr(module, _CONTEXT, None)
    if context is None or context.attend is None:
        raise ModelRefused(
            f"{type(module).__name__} asks for attention outside a step of this server"
        )
    if attention_mask is not None or query.shape[0] != 1:
        raise ModelRefused(f"{type(module).__name__} brings a mask or a batch of its own")
    if key.shape[2] != query.shape[2]:
        raise ModelRefused(
            f"{type(module).__name__} brings {key.shape[2]} keys for {query.shape[2]} tokens: it "
            "keeps a state of its own"
        )
    out_THK = context.attend(
        int(module.layer_idx),  # pyright: ignore[reportArgumentType]
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        AttentionOptions(
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks_H=s_aux,
        ),
    )
    return out_THK.unsqueeze(0), None


def attach(model: PreTrainedModel, context: StepContext) -> None:
    """Send the model's attention to us.

    No mask function is registered: for an implementation without one transformers hands None
    to the attention and spends no time on masks.

    Raises:
        ModelRefused: the model does not take the interface.
    """
    AttentionInterface.register(NAME, attention_forward)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            if getattr(module, "is_causal", True) is False:
                raise ModelRefused(
                    f"{type(model).__name__} is no decoder: {type(module).__name__} has is_causal "
                    "= False, it looks ahead",
                    field="--model",
                )
            setattr(module, _CONTEXT, context)
    switch(model, NAME)


def make_opaque(model: PreTrainedModel) -> None:
    """For a model whose layers are compiled; otherwise the plain function has less to call."""
    AttentionInterface.register(OPAQUE_NAME, torch.compiler.disable(_attention_in_one_layout))
    switch(model, OPAQUE_NAME)


def _attention_in_one_layout(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Code is compiled for a layout; a backend may have one for prompts and another for decode."""
    out_1THK, weights = attention_forward(*args, **kwargs)
    # By way of one dimension: strides of a dimension of one element are anything otherwise.
    return out_1THK.reshape(-1).view(out_1THK.shape), weights


def switch(model: PreTrainedModel, implementation: str) -> None:
    """One of ours, or the model's own `eager` (the self-proof compares the two).

    Raises:
        ModelRefused: the model does not take the interface.
    """
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, KeyError) as error:
        raise _no_interface(model, error) from error
    if current(model) != implementation:
        raise _no_interface(model, "it keeps its own")


def current(model: PreTrainedModel) -> str:
    return str(model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]


def _no_interface(model: PreTrainedModel, reason: object) -> ModelRefused:
    return ModelRefused(
        f"{type(model).__name__} does not go through transformers' attention interface: {reason}",
        field="--model",
    )


@dataclass(frozen=True, slots=True)
class KvShape:
    """What every layer stores per token, as seen in a forward."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_window: int  # largest sliding window of any layer; 0: none
    num_heads: int  # of queries, of the layer with the most


@torch.inference_mode()
def probe_kv_shape(model: PreTrainedModel, context: StepContext) -> KvShape:
    """Run two tokens and look at what attention is given, instead of believing the config.

    Raises:
        ModelRefused: layers differ, share KV, or do not come to us; or the output layer speaks
            of other tokens than the input layer.
    """
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...], int]] = []
    num_heads = 1

    def record(
        layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor, options: AttentionOptions
    ) -> Tensor:
        nonlocal num_heads
        num_heads = max(num_heads, query_THK.shape[1])
        shapes = tuple(key_TGK.shape), tuple(value_TGK.shape)
        seen.append((layer, *shapes, options.sliding_window or 0))
        # Values may be of another width than queries.
        return value_TGK.new_zeros(*query_THK.shape[:2], value_TGK.shape[2])

    name, text_config = type(model).__name__, model.config.get_text_config()
    context.attend = record
    try:
        ids_12 = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
        out = model(
            input_ids=ids_12,
            position_ids=torch.arange(2, device=model.device)[None],
            use_cache=False,
            logits_to_keep=ids_12[0, :1],
        )
        head_width = int(out.logits.shape[-1])
    except ModelRefused as error:
        raise ModelRefused(str(error), field="--model") from error
    # Whatever a model's own code raises says that it cannot be given rows and positions alone.
    except Exception as error:
        raise ModelRefused(
            f"{name} does not run on packed tokens: {type(error).__name__}: {error}",
            field="--model",
        ) from error
    finally:
        context.clear()
    _check_head(head_width, text_config.vocab_size)
    num_layers = int(text_config.num_hidden_layers)
    if [layer for layer, *_ in seen] != list(range(num_layers)):
        raise ModelRefused(
            f"{name} has num_hidden_layers = {num_layers}, but layers "
            f"{[layer for layer, *_ in seen][:99]} came to the attention interface: the others "
            "keep a state, or layers share one",
            field="--model",
        )
    shapes = {shape for _, key, value, _ in seen for shape in (key, value)}
    if len(shapes) != 1:
        raise ModelRefused(
            f"{name} has keys and values of different shapes: {sorted(shapes)}; one shape for all "
            "layers is needed",
            field="--model",
        )
    _, num_kv_heads, head_dim = shapes.pop()
    max_window = max(window for *_, window in seen)
    return KvShape(num_layers, num_kv_heads, head_dim, max_window, num_heads)


def _check_head(head_width: int, vocab_size: int) -> None:
    if head_width != vocab_size:
        raise refused(
            "vocab_size",
            vocab_size,
            f"the output layer has {head_width} logits; a token could be known and never said, or "
            "said and not known",
        )
