"""Stores with thousands of adapters, made in one process by the store's own way of an upload.

Owns the cache: a store lies under a name made of all that it depends on, and gets it when it is
whole; a later run serves it as it is. Adapters are one that PEFT saved with other random weights,
a seed for each, so that no two have a byte of weights in common. Knows no server.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ...adapters.format import read_config
from ...adapters.image import ImageSpec
from ...adapters.intake import plan_adapter
from ...adapters.key import DEFAULT_TENANT
from ...adapters.limits import StoreLimits
from ...adapters.resolve import PeftResolver
from ...adapters.store import AdapterStore
from ..throughput.workload_files import LORA_STRENGTH

RECIPE = 1  # changes with the way stores are made, so that older ones are made again
NUM_WRITERS = 8  # most of a commit is waiting for the disk
LIMITS = StoreLimits(max_upload_bytes=1 << 30, max_rank=256)


@dataclass(frozen=True, slots=True)
class Template:
    """What all adapters of a kind have in common."""

    config_json: bytes
    shapes: tuple[tuple[str, tuple[int, int]], ...]  # of each tensor, by name


@dataclass(frozen=True, slots=True)
class Kind:
    """Adapters named PREFIX-0 to PREFIX-(number - 1)."""

    prefix: str
    number: int
    template: Template

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}-{idx}" for idx in range(self.number))


def read_template(folder: Path) -> Template:
    """From an adapter as PEFT saved it."""
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        names = sorted(file.keys())
        shapes = tuple((name, _matrix(file.get_slice(name).get_shape())) for name in names)
    return Template((folder / "adapter_config.json").read_bytes(), shapes)


def one_site_of(template: Template, module: str) -> Template:
    """The same adapter, if it changed that module of the first layer and nothing else: some
    kilobytes, for adapters that are only there to be many.
    """
    config = json.loads(template.config_json)
    config |= {"target_modules": [module], "layers_to_transform": [0]}
    shapes = tuple(one for one in template.shapes if f".0.self_attn.{module}." in one[0])
    return Template(json.dumps(config).encode(), shapes)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    rows, cols = shape
    return rows, cols


def draw_weights(template: Template, seed: int) -> bytes:
    """A safetensors file of random A and B that move what a linear gives by a fraction of it."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (rows, cols) in template.shapes:
        # A is [rank, in]; B is [out, rank], and PEFT's scale before it is 2.
        strength = 1.0 if "lora_A" in name else LORA_STRENGTH / 2
        drawn = rng.standard_normal((rows, cols), dtype=np.float32)
        tensors[name] = (drawn * (strength * cols**-0.5)).astype(np.float16)
    return save(tensors, {"format": "pt"})


def prepare_store(
    cache: Path, base: Path, spec: ImageSpec, kinds: Sequence[Kind], *, tell: Callable[[str], None]
) -> Path:
    """The folder of a store that holds all of them; made if it is not there.

    Raises:
        AdapterError: the model does not take one of them.
    """
    told = [RECIPE, spec.fingerprint, [(k.prefix, k.number, k.template.shapes) for k in kinds]]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    number = sum(kind.number for kind in kinds)
    home = cache / f"store-{number}-{digest}"
    if not home.exists():
        unfinished = home.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        began_s = time.perf_counter()
        _fill(unfinished, base, spec, kinds)
        unfinished.rename(home)
        tell(f"registered {number} adapters in {time.perf_counter() - began_s:.0f} s")
    return home


def _fill(root: Path, base: Path, spec: ImageSpec, kinds: Sequence[Kind]) -> None:
    store = AdapterStore(root, LIMITS, PeftResolver.of_model(str(base)), unix_now_s=time.time)
    seeds = itertools.count()
    try:
        store.configure(spec)
        with ThreadPoolExecutor(NUM_WRITERS) as writers:
            for _ in writers.map(lambda one: _put(store, *one), _all(kinds, seeds)):
                pass
    finally:
        store.close()


def _all(kinds: Sequence[Kind], seeds: Iterator[int]) -> Iterator[tuple[str, Template, int]]:
    for kind in kinds:
        for name in kind.names:
            yield name, kind.template, next(seeds)


def _put(store: AdapterStore, name: str, template: Template, seed: int) -> None:
    weights = draw_weights(template, seed)
    upload = store.begin(
        tenant=DEFAULT_TENANT,
        name=name,
        config_json=template.config_json,
        size_bytes=len(weights),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    upload.write(weights)
    store.commit(upload)


def image_pages(base: Path, spec: ImageSpec, template: Template) -> int:
    """Pages of the pool that one adapter takes.

    Raises:
        AdapterError: the model does not take it.
    """
    resolver = PeftResolver.of_model(str(base))
    config = read_config(template.config_json, LIMITS)
    return plan_adapter(config, spec, resolver, LIMITS, max_pages=None).layout.num_pages
