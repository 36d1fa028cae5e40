"""Loading the base model and preparing it: what is served, and whether it can be.

Owns the checks on a model's config, its dtype and device, the geometry of a page and the
base's fingerprint. Does not know requests, the pool's size or adapters. Called at start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ...adapters.image import ImageSpec, tile_cols
from ..config import ModelConfig
from ..errors import ConfigError, ModelRefused
from .context import StepContext
from .interface import KvShape, attach, probe_kv_shape
from .sites import install_sites

TOKENS_PER_PAGE = 16
MAX_PAGE_BYTES = 4 << 20  # pages that would be larger hold half the tokens
FINGERPRINT_VALUES = 64
# The frequencies of these follow the longest position in the batch: requests would leak
# into each other.
LEAKING_ROPES = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class PageGeometry:
    """One page of the pool, seen as KV cells [L, 2, G, Z, K]."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    tokens_per_page: int

    @property
    def page_elements(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.tokens_per_page * self.head_dim


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model prepared to be run by pages."""

    model: PreTrainedModel
    context: StepContext
    architecture: str
    dtype: torch.dtype
    device: torch.device
    fingerprint: str  # of the base's weights
    max_model_len: int  # tokens of prompt and answer
    max_window: int  # largest sliding window in tokens; 0: none
    geometry: PageGeometry
    image_spec: ImageSpec
    eos_ids: tuple[int, ...]
    vocab_size: int


def load_model(config: ModelConfig) -> LoadedModel:
    """Load from local files, check, and prepare.

    Raises:
        ConfigError: a flag does not fit the machine or the model.
        ModelRefused: the model cannot be served exactly.
    """
    device = _device(config.device)
    model = _load_weights(config, device)
    return prepare_model(model, max_model_len=config.max_model_len)


def prepare_model(model: PreTrainedModel, *, max_model_len: int = 0) -> LoadedModel:
    """Check a model in memory and put our attention and linears into it."""
    text_config = model.config.get_text_config()
    check_config(model.config)
    fingerprint = fingerprint_of(model)
    model.eval().requires_grad_(False)
    context = StepContext()
    attach(model, context)
    kv = probe_kv_shape(model, context)
    geometry = page_geometry(kv, element_bytes=model.dtype.itemsize)
    sites = install_sites(model, context, num_layers=kv.num_layers)
    return LoadedModel(
        model=model,
        context=context,
        architecture=type(model).__name__,
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint,
        max_model_len=_max_len(text_config, max_model_len),
        max_window=kv.max_window,
        geometry=geometry,
        image_spec=ImageSpec(geometry.page_elements, _dtype_name(model.dtype), sites),
        eos_ids=_eos_ids(model),
        vocab_size=int(text_config.vocab_size),
    )


def page_geometry(kv: KvShape, *, element_bytes: int) -> PageGeometry:
    """16 tokens a page, or 8 where such a page would exceed 4 MiB.

    Raises:
        ModelRefused: pages too small or too odd to hold an adapter's tiles.
    """
    geometry = PageGeometry(kv.num_layers, kv.num_kv_heads, kv.head_dim, TOKENS_PER_PAGE)
    if geometry.page_elements * element_bytes > MAX_PAGE_BYTES:
        geometry = PageGeometry(kv.num_layers, kv.num_kv_heads, kv.head_dim, TOKENS_PER_PAGE // 2)
    try:
        tile_cols(geometry.page_elements)
    except ValueError as error:
        raise ModelRefused(
            f"the KV of {geometry.tokens_per_page} tokens makes no page: {error}", field="--model"
        ) from error
    return geometry


def check_config(config: PreTrainedConfig) -> None:
    """Refuse what the packed, paged path would get wrong without a word.

    Raises:
        ModelRefused: names the config field and its value.
    """
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise _refused("is_encoder_decoder", True, "only decoders are served")
    if getattr(config, "quantization_config", None) is not None:
        raise _refused("quantization_config", "set", "weights must be plain floats")
    chunk = getattr(text_config, "attention_chunk_size", None)
    if chunk is not None:
        raise _refused("attention_chunk_size", chunk, "chunked attention is not supported")
    for rope_type in _rope_types(text_config):
        if rope_type in LEAKING_ROPES:
            raise _refused(
                "rope_type", rope_type, "it depends on the longest request of the whole batch"
            )


@torch.no_grad()
def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and 64 evenly spaced values of each parameter as bfloat16.

    The cast makes one checkpoint give one fingerprint whether it is served in fp32 or bf16.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        flat = parameter.detach().reshape(-1)
        count = min(FINGERPRINT_VALUES, flat.numel())
        picks = [i * flat.numel() // count for i in range(count)]
        values = flat[torch.tensor(picks, dtype=torch.int64, device=flat.device)]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_weights(config: ModelConfig, device: torch.device) -> PreTrainedModel:
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    disable_progress_bar()  # the log of a service is no terminal
    loader: Any = AutoModelForCausalLM
    try:
        checkpoint = AutoConfig.from_pretrained(config.model, **source)
        check_config(checkpoint)
        model: PreTrainedModel = loader.from_pretrained(
            config.model,
            dtype=_dtype(config.dtype, device, checkpoint),
            attn_implementation="eager",
            use_safetensors=True,
            **source,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(
            f"--model is {config.model!r}; it cannot be loaded from local safetensors files: "
            f"{error}",
            field="--model",
        ) from error
    return cast(Any, model).to(device)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device is {name!r}: {error}", field="--device") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; it must be cpu or cuda", field="--device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name!r}, but torch sees no GPU", field="--device")
    return device


def _dtype(name: str, device: torch.device, checkpoint: PreTrainedConfig) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    own = getattr(checkpoint, "dtype", None)
    if device.type == "cpu" or not isinstance(own, torch.dtype):
        return torch.float32
    return own


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _max_len(text_config: PreTrainedConfig, asked: int) -> int:
    own = int(getattr(text_config, "max_position_embeddings", 0) or 0)
    if asked and own and asked > own:
        raise ConfigError(
            f"--max-model-len is {asked}, more than the model's own {own}", field="--max-model-len"
        )
    if not asked and not own:
        raise ConfigError(
            "--max-model-len is needed: the model's config names no limit", field="--max-model-len"
        )
    return asked or own


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = getattr(model.config.get_text_config(), "eos_token_id", None)
    if found is None:
        return ()
    return (int(found),) if isinstance(found, int) else tuple(int(token) for token in found)


def _rope_types(text_config: PreTrainedConfig) -> Iterator[str]:
    """Every rope_type named anywhere: the field may be one table, or one per kind of layer."""
    for field in ("rope_parameters", "rope_scaling"):
        tables: list[object] = [getattr(text_config, field, None)]
        while tables:
            table = tables.pop()
            if isinstance(table, Mapping):
                named = cast("Mapping[str, object]", table)
                yield str(named.get("rope_type", named.get("type", "default")))
                tables.extend(named.values())


def _refused(field: str, value: object, reason: str) -> ModelRefused:
    return ModelRefused(f"the model's config has {field} = {value}: {reason}", field=field)
