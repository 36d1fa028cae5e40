"""Reading one uploaded adapter: from bytes nobody vouches for to weights that can be packed.

Owns the checks (README.md has them as MUST lines) in two halves: config, its fields and the
modules they mean; then names and shapes from the header alone, and only then the numbers. Does
not know names, versions or where files are kept; called by intake.py, which owns their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .base_weights import SavedWeight, check_base_weights, find_base_weights
from .errors import AdapterRefused, AdapterTooLarge
from .fields import check_fields
from .header import TensorEntry, read_header
from .image import ImageSpec, SiteRank
from .json_object import read_object
from .limits import StoreLimits
from .names import PEFT_PREFIX, shown
from .packing import Weights
from .resolve import Resolution
from .spelling import FACTORS, Places


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """What each tensor of a file is, by its name alone."""

    factors: Mapping[int, tuple[str, str]]  # by site: the names of A and B
    base_weights: tuple[SavedWeight, ...]


@dataclass(frozen=True, slots=True)
class ReadAdapter:
    weights: Weights
    notes: tuple[str, ...]
    has_base_weights: bool  # which are those of the base served now


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    applied: Mapping[str, object]  # the fields PEFT is asked about
    base_name: str  # base_model_name_or_path; empty: not given


def read_config(data: bytes, limits: StoreLimits) -> AdapterConfig:
    """Raises AdapterRefused or AdapterTooLarge, naming the field."""
    if len(data) > limits.max_config_bytes:
        raise AdapterTooLarge(
            f"adapter_config.json has {len(data)} bytes; at most {limits.max_config_bytes} are "
            "allowed",
            field="config_json",
            value=len(data),
            limit=limits.max_config_bytes,
            unit="bytes",
        )
    config = read_object(data, what="adapter_config.json", field="config_json")
    applied = check_fields(config)
    _check_rank("r", cast(int, applied.get("r", 1)), limits.max_rank)
    for pattern, rank in cast(dict[str, int], applied.get("rank_pattern", {})).items():
        _check_rank("rank_pattern", rank, limits.max_rank, of=pattern)
    return AdapterConfig(applied, str(config.get("base_model_name_or_path") or ""))


def read_weights(
    path: Path,
    spec: ImageSpec,
    ranks: Sequence[SiteRank],
    locate: Callable[[Collection[str]], Places],
) -> ReadAdapter:
    """`locate` says where PEFT puts tensors of such names.

    Raises:
        AdapterRefused: naming the tensor.
    """
    entries = read_header(path)
    factors = [name for name in entries if ".lora_" in name]
    needed = len(FACTORS) * len(ranks)
    if len(factors) > 2 * needed:  # before PEFT searches so many names
        raise AdapterRefused(
            f"the file has {len(factors)} LoRA tensors; the config adapts {len(ranks)} modules, "
            f"which is {needed} of them (the first in the file is {shown(factors[0], 200)})",
            field="weights",
        )
    return _read_tensors(path, match_tensors(entries, spec, ranks, locate(factors)), spec)


def match_sites(resolution: Resolution, spec: ImageSpec) -> tuple[SiteRank, ...]:
    """Every module PEFT adapts must be a site of the base: none is dropped."""
    site_idx = {site.name: index for index, site in enumerate(spec.sites)}
    for module in resolution.modules:
        if module.name not in site_idx:
            raise AdapterRefused(
                f"target_modules mean {module.name}, which this server cannot adapt; it adapts "
                f"{', '.join(_last_names(spec))}",
                field="target_modules",
            )
    ranks = [SiteRank(site_idx[m.name], m.rank, m.scale) for m in resolution.modules]
    return tuple(sorted(ranks, key=lambda rank: rank.site))


def match_tensors(
    entries: Mapping[str, TensorEntry], spec: ImageSpec, ranks: Sequence[SiteRank], places: Places
) -> MatchedTensors:
    """Each A and B there once, of the right shape; beside them only weights the base has too."""
    unmet = dict(entries)
    factors: dict[int, tuple[str, str]] = {}
    for entry in ranks:
        site = spec.sites[entry.site]
        factors[entry.site] = (
            _take(unmet, places, (site.name, "lora_A"), (entry.rank, site.in_width)),
            _take(unmet, places, (site.name, "lora_B"), (site.out_width, entry.rank)),
        )
    saved = find_base_weights(unmet, spec)
    for weight in saved:
        del unmet[weight.tensor]
    if unmet:
        name = min(unmet)
        raise AdapterRefused(
            f"tensor {shown(name, 200)} belongs to no module the config names, or another tensor "
            f"takes its place; it would have to be dropped in silence ({len(unmet)} such in all)",
            field=name[:256],
        )
    return MatchedTensors(factors, saved)


def _take(
    unmet: dict[str, TensorEntry],
    places: Places,
    place: tuple[str, str],
    shape: tuple[int, int],
) -> str:
    name = places.get(place)
    if name is None:
        module, factor = place
        plain = f"{PEFT_PREFIX}{module}.{factor}.weight"
        hint = f"; PEFT loads no tensor named {shown(min(unmet), 200)} as such" if unmet else ""
        raise AdapterRefused(
            f"tensor {plain} is missing; the config adapts {module}{hint}", field=plain
        )
    entry = unmet.pop(name)
    if entry.shape != shape:
        raise AdapterRefused(
            f"tensor {name} has shape {list(entry.shape)}; the config and the base need "
            f"{list(shape)}",
            field=name,
        )
    return name


def _read_tensors(path: Path, matched: MatchedTensors, spec: ImageSpec) -> ReadAdapter:
    try:
        with safe_open(path, framework="pt") as file:
            notes = check_base_weights(file, matched.base_weights, spec.dtype)
            weights = {
                site: (_finite(a, file.get_tensor(a)), _finite(b, file.get_tensor(b)))
                for site, (a, b) in matched.factors.items()
            }
    except SafetensorError as error:
        raise AdapterRefused(
            f"adapter_model.safetensors cannot be read: {error}", field="weights"
        ) from error
    return ReadAdapter(weights, notes, bool(matched.base_weights))


def _finite(name: str, tensor: Tensor) -> Tensor:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise AdapterRefused(
            f"tensor {name} has {bad} values that are NaN or infinite; none may be", field=name
        )
    return tensor


def _check_rank(field: str, rank: int, max_rank: int, *, of: str = "") -> None:
    if rank > max_rank:
        where = f"{field}[{shown(of)}]" if of else field
        raise AdapterTooLarge(
            f"{where} is {shown(rank)}; this server takes ranks up to {max_rank}",
            field=field,
            value=min(rank, 2**63 - 1),
            limit=max_rank,
            unit="ranks",
        )


def base_notes(given: str, served: str) -> tuple[str, ...]:
    """`given` and `served` are names: a hint at best, so nothing is refused by them."""
    if not given or not served or PurePosixPath(given).name == PurePosixPath(served).name:
        return ()
    return (
        f"trained on {shown(given)}, served on {shown(served)}: modules and shapes fit, whether "
        "the weights do cannot be seen",
    )


def _last_names(spec: ImageSpec) -> list[str]:
    return sorted({site.name.rpartition(".")[2] for site in spec.sites})
