"""Loading the base model and preparing it: what is served, and whether it can be.

Owns the checks on a model's config, its dtype and device, the geometry of a page and the
base's fingerprint. Does not know requests, the pool's size or adapters. Called at start.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ...adapters.image import ImageSpec, tile_cols
from ..config import ModelConfig
from ..errors import ConfigError, ModelRefused
from .base_hashes import hash_base_weights
from .context import StepContext
from .fusing import compile_layers
from .interface import KvShape, attach, probe_kv_shape
from .packed import pack_linears
from .refusals import check_config, check_loaded, check_window, plain_parts, quant_method_of
from .rope import check_positions, fix_longrope
from .siblings import merge_siblings
from .sites import install_sites

TOKENS_PER_PAGE = 16
MAX_PAGE_BYTES = 4 << 20  # pages that would be larger hold half the tokens
FINGERPRINT_VALUES = 64


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
    num_heads: int  # of queries
    geometry: PageGeometry
    image_spec: ImageSpec
    eos_ids: tuple[int, ...]
    vocab_size: int
    siblings: tuple[tuple[int, ...], ...] = ()  # sites that one module gives the same input
    notes: tuple[str, ...] = ()  # choices made for all requests at once, for the log

    @property
    def page_bytes(self) -> int:
        return self.geometry.page_elements * self.dtype.itemsize


def load_model(config: ModelConfig) -> LoadedModel:
    """Load from local files, check, and prepare.

    Raises:
        ConfigError: a flag does not fit the machine or the model.
        ModelRefused: the model cannot be served exactly.
    """
    device = _device(config.device)
    model = _load_weights(config, device)
    loaded = prepare_model(model, max_model_len=config.max_model_len)
    return settle_weights(loaded, compiled=config.compile_layers)


def settle_weights(loaded: LoadedModel, *, compiled: bool = False) -> LoadedModel:
    """Lay the weights out for products, after everything that reads them. The self-proof judges
    what is computed from then on.
    """
    # Not on a CPU: columns of a wider buffer cost workload W more than the products gain.
    if loaded.device.type != "cpu":
        merge_siblings(loaded.model, loaded.siblings)
    pack_linears(loaded.model)
    if not compiled:
        return loaded
    num_graphs = compile_layers(loaded.model, loaded.context).num_graphs
    return replace(loaded, notes=(*loaded.notes, f"layers compiled in {num_graphs} pieces"))


def prepare_model(model: PreTrainedModel, *, max_model_len: int = 0) -> LoadedModel:
    """Check a model in memory and put our attention and linears into it."""
    check_config(model.config)
    text_config = model.config.get_text_config()
    max_len = _max_len(text_config, max_model_len)
    fingerprint = fingerprint_of(model)
    model.eval().requires_grad_(False)
    notes = fix_longrope(model, max_len)
    context = StepContext()
    attach(model, context)
    kv = probe_kv_shape(model, context)
    check_window(text_config, seen=kv.max_window, max_model_len=max_len)
    geometry = page_geometry(kv, element_bytes=model.dtype.itemsize)
    installed = install_sites(model, context, num_layers=kv.num_layers)
    check_positions(model, context, max_len)
    return LoadedModel(
        model=model,
        context=context,
        architecture=type(model).__name__,
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint,
        max_model_len=max_len,
        max_window=kv.max_window,
        num_heads=kv.num_heads,
        geometry=geometry,
        image_spec=ImageSpec(
            geometry.page_elements,
            _dtype_name(model.dtype),
            installed.sites,
            hash_base_weights(model),
        ),
        eos_ids=_eos_ids(model),
        vocab_size=int(text_config.vocab_size),
        siblings=installed.siblings,
        notes=(*notes, *installed.notes),
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


@torch.no_grad()
def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and 64 evenly spaced values of each parameter as bfloat16.

    The cast makes one checkpoint give one fingerprint whether it is served in fp32 or bf16.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        for plain in plain_parts(parameter.detach()):
            flat = plain.reshape(-1)
            count = min(FINGERPRINT_VALUES, flat.numel())
            picks = [i * flat.numel() // count for i in range(count)]
            values = flat[torch.tensor(picks, dtype=torch.int64, device=flat.device)]
            digest.update(f"{name}{tuple(plain.shape)}".encode())
            digest.update(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_weights(config: ModelConfig, device: torch.device) -> PreTrainedModel:
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    disable_progress_bar()  # the log of a service is no terminal
    loader: Any = AutoModelForCausalLM
    quant_method = ""
    try:
        checkpoint = AutoConfig.from_pretrained(config.model, **source)
        check_config(checkpoint)
        quant_method = quant_method_of(checkpoint)
        model, info = loader.from_pretrained(
            config.model,
            dtype=_dtype(config.dtype, device, checkpoint),
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            **source,
        )
    # What a quantizer misses is said by many classes: its package, a device, a file.
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, NotImplementedError) as error:
        what = f" (quant_method is {quant_method!r})" if quant_method else ""
        raise ModelRefused(
            f"--model is {config.model!r}; it cannot be loaded from local safetensors files{what}: "
            f"{error}",
            field="--model",
        ) from error
    check_loaded(model, info, quant_method)
    if not quant_method:
        return model.to(device)
    # A quantizer has put its weights where they belong.
    _widen_unpacked(model)
    return model


@torch.no_grad()
def _widen_unpacked(model: PreTrainedModel) -> None:
    """Weights that transformers 5.17 unpacks stay in 16 bits in a model of fp32, and what is
    computed with them is rounded; later versions widen them, which changes no value.
    """
    if model.dtype != torch.float32:
        return
    for parameter in model.parameters():
        is_plain = len(plain_parts(parameter)) == 1
        if is_plain and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


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
