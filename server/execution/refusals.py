"""What is refused by its config or its files: each would be wrong without a word.

Owns the list of config fields that the packed, paged path cannot honour, with the reason, and
what a load must not have left out. What cannot be read off a config is found by looking
(interface.py, row_probe.py, rope.py) and by the self-proof. Pure; called by model.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from ..errors import ModelRefused
from .row_probe import widths_of

# Attention of other kinds keeps a state, a choice of tokens or a block of its own.
KNOWN_LAYER_TYPES = ("full_attention", "sliding_attention")
# field -> why any value but these is refused
REASONS: Mapping[str, str] = {
    "is_encoder_decoder": "only decoders are served",
    "attention_chunk_size": "chunked attention is not supported",
    "add_cross_attention": "there is no second sequence to attend to",
    "use_bidirectional_attention": "attention must look back only",
    "num_kv_shared_layers": "layers that share keys and values are not supported",
    "index_topk": "sparse attention over chosen tokens is not supported",
    "index_topk_blocks": "sparse attention over chosen blocks is not supported",
    "compress_rates": "attention over compressed tokens is not supported",
}
OFF = (None, False, 0, ())
SHOWN_KEYS = 4
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_config(config: PreTrainedConfig) -> None:
    """Refuse what the packed, paged path would get wrong without a word.

    Raises:
        ModelRefused: names the config field and its value.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise refused("is_encoder_decoder", True, REASONS["is_encoder_decoder"])
    text_config = _text_config(config)
    for field, reason in REASONS.items():
        value = getattr(text_config, field, None)
        if value not in OFF:
            raise refused(field, value, reason)
    for layer_type in getattr(text_config, "layer_types", None) or ():
        if layer_type not in KNOWN_LAYER_TYPES:
            raise refused(
                "layer_types",
                layer_type,
                f"a layer must be one of {', '.join(KNOWN_LAYER_TYPES)}, and keep nothing but keys "
                "and values",
            )
    for rope_type in rope_types(text_config):
        if "dynamic" in rope_type:
            raise refused(
                "rope_type", rope_type, "it depends on the longest request of the whole batch"
            )


def check_window(text_config: PreTrainedConfig, *, seen: int, max_model_len: int) -> None:
    """Refuse a sliding window that lives in the mask alone: attention is given none here.

    `seen` is the largest window that the layers told attention of, 0: none. A prompt of the
    self-proof is longer than that one, and no longer than one it has not heard of.

    Raises:
        ModelRefused: a window shorter than the context that no layer told of.
    """
    window = getattr(text_config, "sliding_window", None) or 0
    layer_types = getattr(text_config, "layer_types", None)
    slides = layer_types is None or "sliding_attention" in layer_types
    if seen < window < max_model_len and slides:
        raise refused(
            "sliding_window",
            window,
            f"attention is told of {seen or 'none'}; the model keeps it in a mask of its own "
            f"(--max-model-len {window} does without)",
        )


def check_loaded(model: PreTrainedModel, info: Mapping[str, Any], quant_method: str) -> None:
    """Refuse a model of which a part is not the checkpoint's, or the other way around.

    transformers fills what a checkpoint lacks with random numbers, drops what a model has no
    place for, and takes a quantizer it does not know for none. It warns of each.

    Raises:
        ModelRefused: names some of the weights, or the quantizer.
    """
    config: Any = getattr(model.config, "quantization_config", None)
    if quant_method and config is not None:
        asked = config if isinstance(config, Mapping) else config.to_dict()
        if not AutoHfQuantizer.supports_quant_method(asked):
            raise refused("quant_method", quant_method, "transformers knows no such quantizer")
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        _none_of(info.get(what) or (), what, "they would be random numbers")
    dropped = [
        key
        for key in info.get("unexpected_keys") or ()
        if _is_linear(model, str(key).rpartition(".")[0])
    ]
    _none_of(dropped, "tensors of linears that have no place for them", "they would be dropped")


def _none_of(keys: Iterable[object], what: str, consequence: str) -> None:
    named = sorted(str(key) for key in keys)
    if named:
        shown = ", ".join(named[:SHOWN_KEYS]) + (", ..." if len(named) > SHOWN_KEYS else "")
        raise ModelRefused(
            f"the checkpoint has {len(named)} {what.replace('_', ' ')}: {shown}; {consequence}",
            field="--model",
        )


def _is_linear(model: PreTrainedModel, name: str) -> bool:
    try:
        return widths_of(model.get_submodule(name)) is not None
    except AttributeError:
        return False


def quant_method_of(config: PreTrainedConfig) -> str:
    """The name of the quantizer a checkpoint asks for; empty: none."""
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization is None:
        return ""
    found = (
        quantization.get("quant_method")
        if isinstance(quantization, Mapping)
        else getattr(quantization, "quant_method", None)
    )
    return str(getattr(found, "value", found) or "unknown")


def is_packed(model: PreTrainedModel) -> bool:
    """Whether some weights are not plain floats: no cast makes them what they mean."""
    return any(
        len(plain_parts(parameter)) != 1 or parameter.dtype not in PLAIN_DTYPES
        for parameter in model.parameters()
    )


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The tensor itself, or those that a quantizer's own kind of tensor is made of."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


def rope_types(text_config: PreTrainedConfig) -> Iterator[str]:
    """Every rope_type named anywhere: the field may be one table, or one per kind of layer."""
    for field in ("rope_parameters", "rope_scaling"):
        tables: list[object] = [getattr(text_config, field, None)]
        while tables:
            table = tables.pop()
            if isinstance(table, Mapping):
                named = cast("Mapping[str, object]", table)
                yield str(named.get("rope_type", named.get("type", "default")))
                tables.extend(named.values())


def refused(field: str, value: object, reason: str) -> ModelRefused:
    return ModelRefused(f"the model's config has {field} = {value}: {reason}", field=field)


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    try:
        return config.get_text_config()
    except ValueError as error:
        raise ModelRefused(
            f"the model's config has several texts to speak of: {error}", field="--model"
        ) from error
