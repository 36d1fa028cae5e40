"""The model and the adapters of the live benches: random weights, made once, kept under build/.

Owns the model's shape and the cache: a base for each shape, and below it adapters by rank and
number, put in place whole, so that a half-made one is never read and another workload reuses
what is there. Knows no server; live.py uploads what this makes, under the workload's names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..machine import ROOT_DIR
from ..plain_model import load_plain
from ..throughput.workload import ModelShape
from ..throughput.workload_files import RECIPE, STORED_DTYPE, make_base, save_adapter
from ..workload.records import WorkloadAdapter

CACHE_DIR = ROOT_DIR / "build" / "slo"
# 38 million parameters: a step takes one core several times as long as the front end and the
# client take for its tokens, and a run of hundreds of requests still ends within minutes.
SHAPE = ModelShape(
    num_layers=12,
    hidden_width=512,
    num_heads=8,
    num_kv_heads=2,
    mlp_width=1408,
    vocab_size=8192,
    max_len=1024,
)
# S-LoRA's four. With the MLP an adapter of rank 64 would be a fifth of this small a model, and
# LoRA weigh more than it does on the models that people serve.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BASE_NAME = "lorry-slo"


@dataclass(frozen=True, slots=True)
class FleetFiles:
    base: Path
    adapters: Mapping[str, Path]  # by the workload's names
    model: str  # as results tell it: its name; then more of it


def num_parameters(shape: ModelShape) -> int:
    """Of the base; the embeddings are tied."""
    linears = sum(wide * long for wide, long in shape.linears.values())
    norms = (2 * shape.num_layers + 1) * shape.hidden_width
    return shape.num_layers * linears + shape.vocab_size * shape.hidden_width + norms


def describe(shape: ModelShape, targets: Sequence[str]) -> str:
    return (
        f"random Llama of {num_parameters(shape) / 1e6:.0f} M parameters; {shape.num_layers} "
        f"layers, width {shape.hidden_width}, adapters on {', '.join(targets)}"
    )


def prepare_fleet(
    adapters: Sequence[WorkloadAdapter],
    cache: Path = CACHE_DIR,
    *,
    shape: ModelShape = SHAPE,
    targets: Sequence[str] = TARGETS,
) -> FleetFiles:
    """The files of these adapters and their base; what is not there is made, in seconds."""
    home = cache / f"fleet-{_digest(asdict(shape))}"
    base = home / "base"
    if not base.exists():
        _put(base, lambda folder: make_base(shape, folder, seed=0))
    paths = _prepare_adapters(adapters, base, home, targets)
    return FleetFiles(base, paths, describe(shape, targets))


def prepare_fleet_of(
    base: Path, adapters: Sequence[WorkloadAdapter], cache: Path = CACHE_DIR
) -> FleetFiles:
    """Random adapters for a model that is there already, a folder as transformers saves it."""
    home = cache / f"fleet-{base.name}-{_digest((base / 'config.json').read_text())}"
    told = f"{base.name}; random adapters on {', '.join(TARGETS)}"
    return FleetFiles(base, _prepare_adapters(adapters, base, home, TARGETS), told)


def _digest(what: object) -> str:
    told = json.dumps([RECIPE, what], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _prepare_adapters(
    adapters: Sequence[WorkloadAdapter], base: Path, home: Path, targets: Sequence[str]
) -> dict[str, Path]:
    kind = "-".join(target.removesuffix("_proj") for target in targets)
    model: Any = None
    paths: dict[str, Path] = {}
    num_of_rank: Counter[int] = Counter()
    for adapter in adapters:
        number = num_of_rank[adapter.rank]
        num_of_rank[adapter.rank] += 1
        path = home / kind / f"r{adapter.rank}-{number}"
        if not path.exists():
            model = model or _load(base)
            _put(path, _saver(model, adapter.rank, number, targets))
        paths[adapter.name] = path
    return paths


def _saver(model: Any, rank: int, number: int, targets: Sequence[str]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        seed = 100_000 * rank + number
        save_adapter(model, rank, folder, seed=seed, targets=targets, base_name=BASE_NAME)

    return save


def _load(base: Path) -> Any:
    with torch.device("cpu"):
        return load_plain(base, dtype=STORED_DTYPE)


def _put(target: Path, make: Callable[[Path], object]) -> None:
    """`make` fills a folder that gets its name when it is whole."""
    unfinished = target.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished)
    unfinished.rename(target)
