"""Small adapters, bases and stores for the tests of the cargo room.

The base is a random Llama of two layers; adapters are written by hand in PEFT's own form, so
that each test can bend exactly one thing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorry.adapters.image import BaseWeight, ImageSpec, Site
from lorry.adapters.key import Stored
from lorry.adapters.limits import StoreLimits
from lorry.adapters.packing import DTYPES
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 64, 2, 4, 2, 96, 128
PAGE_ELEMENTS = LAYERS * 2 * KV_HEADS * 16 * (HIDDEN // HEADS)
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.v_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, FFN),
    "mlp.up_proj": (HIDDEN, FFN),
    "mlp.down_proj": (FFN, HIDDEN),
}
SITES = tuple(
    Site(f"model.layers.{layer}.{name}", layer, in_width, out_width)
    for layer in range(LAYERS)
    for name, (in_width, out_width) in LINEARS.items()
)
HEAD = Site("lm_head", LAYERS, HIDDEN, VOCAB)
LIMITS = StoreLimits(max_upload_bytes=1 << 20, max_rank=64)
TENANT = "default"


def make_llama_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=FFN,
        vocab_size=VOCAB,
        max_position_embeddings=128,
    )


def make_meta_model() -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(make_llama_config())


def make_spec(
    *,
    page_elements: int = PAGE_ELEMENTS,
    dtype: str = "float32",
    sites: tuple[Site, ...] = SITES,
    base_weights: tuple[BaseWeight, ...] = (),
) -> ImageSpec:
    return ImageSpec(page_elements, dtype, sites, base_weights)


def make_base_weight(name: str, tensor: Tensor) -> BaseWeight:
    """As a server says of a weight of its base."""
    hashes = tuple(
        (dtype, hashlib.sha256(tensor.detach().to(kind).view(torch.uint8).numpy()).hexdigest())
        for dtype, kind in DTYPES.items()
    )
    return BaseWeight(name, tuple(tensor.shape), hashes)


def make_config(**changes: object) -> dict[str, object]:
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    return config | changes


def make_tensors(
    *,
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random A and B for every site whose last name is a target."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site in SITES:
        if site.name.rpartition(".")[2] in targets:
            stem = f"base_model.model.{site.name}"
            a = torch.randn(rank, site.in_width, generator=generator)
            b = torch.randn(site.out_width, rank, generator=generator)
            tensors[f"{stem}.lora_A.weight"] = a.to(dtype)
            tensors[f"{stem}.lora_B.weight"] = b.to(dtype)
    return tensors


def make_files(
    config: Mapping[str, object] | None = None, tensors: Mapping[str, Tensor] | None = None
) -> tuple[bytes, bytes]:
    """adapter_config.json and adapter_model.safetensors."""
    config_json = json.dumps(config if config is not None else make_config()).encode()
    return config_json, save(dict(tensors if tensors is not None else make_tensors()))


def content(seed: int) -> tuple[bytes, bytes]:
    """Files that differ by seed in their numbers alone."""
    return make_files(tensors=make_tensors(seed=seed))


def blobs(store_root: Path) -> set[str]:
    """Contents the store keeps."""
    return {path.name for path in (store_root / "blobs").iterdir()}


def make_raw(header: object, data: bytes = b"", *, header_bytes: int | None = None) -> bytes:
    """A safetensors file with a header of any content, honest or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    return struct.pack("<Q", length) + text + data


class FakeWallClock:
    """Seconds since 1970 that move by one at each look."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def make_old_image(path: Path, kept: slice = slice(-1, None)) -> None:
    """With these of its checksums; as images were written that had one, over layout and pages."""
    with safe_open(path, "pt") as file:
        metadata, pages = file.metadata(), file.get_tensor("pages")
    old = {"layout": metadata["layout"], "crc32": " ".join(metadata["crc32"].split(" ")[kept])}
    save_file({"pages": pages}, path, metadata=old)


def make_store(
    root: Path,
    resolver: PeftResolver,
    *,
    limits: StoreLimits = LIMITS,
    spec: ImageSpec | None = None,
    max_pages: int | None = None,
    base_fingerprint: str = "",
    at: Callable[[str], None] = lambda step: None,
) -> AdapterStore:
    """A configured store; the caller closes it."""
    store = AdapterStore(root, limits, resolver, unix_now_s=FakeWallClock(), at=at)
    store.configure(
        spec if spec is not None else make_spec(),
        base_fingerprint=base_fingerprint,
        max_pages=max_pages,
    )
    return store


def upload(
    store: AdapterStore,
    name: str = "cat",
    *,
    tenant: str = TENANT,
    files: tuple[bytes, bytes] | None = None,
    size_bytes: int | None = None,
    sha256: str | None = None,
    base_fingerprint: str = "",
    chunk_bytes: int = 4096,
) -> Stored:
    """Send one adapter whole; size and hash are honest unless given."""
    config_json, weights = files if files is not None else make_files()
    opened = store.begin(
        tenant=tenant,
        name=name,
        config_json=config_json,
        size_bytes=len(weights) if size_bytes is None else size_bytes,
        sha256=hashlib.sha256(weights).hexdigest() if sha256 is None else sha256,
        base_fingerprint=base_fingerprint,
    )
    try:
        for start in range(0, len(weights), chunk_bytes):
            opened.write(weights[start : start + chunk_bytes])
    except BaseException:
        opened.abort()
        raise
    return store.commit(opened)
