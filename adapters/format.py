"""Reading one uploaded adapter: from bytes nobody vouches for to weights that can be packed.

Owns the checks (README.md has them as MUST lines) in two halves: config, its fields and the
modules they mean; then names and shapes from the header alone, and only then the numbers. Does
not know names, versions or where files are kept; called by intake.py, which owns their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import AdapterRefused, AdapterTooLarge
from .fields import check_fields
from .header import TensorEntry, read_header
from .image import ImageSpec, SiteRank
from .json_object import read_object
from .limits import StoreLimits
from .names import shown
from .packing import Weights
from .resolve import Resolution


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


def read_weights(path: Path, spec: ImageSpec, ranks: Sequence[SiteRank]) -> Weights:
    """Raises AdapterRefused, naming the tensor."""
    return _read_tensors(path, match_tensors(read_header(path), spec, ranks))


def match_sites(resolution: Resolution, spec: ImageSpec) -> tuple[SiteRank, ...]:
    """Every module PEFT adapts must be a site of the base: none is dropped."""
    site_idx = {site.name: index for index, site in enumerate(spec.sites)}
    for module in resolution.modules:
        if module.name not in site_idx:
            raise AdapterRefused(
                f"target_modules mean {module.name}, which this server cannot adapt; it adapts "
                f"the linears of the decoder layers ({', '.join(_last_names(spec))})",
                field="target_modules",
            )
    ranks = [SiteRank(site_idx[m.name], m.rank, m.scale) for m in resolution.modules]
    return tuple(sorted(ranks, key=lambda rank: rank.site))


def match_tensors(
    entries: Mapping[str, TensorEntry], spec: ImageSpec, ranks: Sequence[SiteRank]
) -> dict[int, tuple[str, str]]:
    """The names of A and B by site: each there once, of the right shape, and no other tensor."""
    unmet = dict(entries)
    found: dict[int, tuple[str, str]] = {}
    for entry in ranks:
        site = spec.sites[entry.site]
        found[entry.site] = (
            _take(unmet, site.name, "lora_A", (entry.rank, site.in_width)),
            _take(unmet, site.name, "lora_B", (site.out_width, entry.rank)),
        )
    if unmet:
        name = min(unmet)
        raise AdapterRefused(
            f"tensor {shown(name, 200)} belongs to no module the config names; it would have to "
            f"be dropped in silence ({len(unmet)} such in all)",
            field=name[:256],
        )
    return found


def _take(unmet: dict[str, TensorEntry], site_name: str, part: str, shape: tuple[int, int]) -> str:
    stem = f"base_model.model.{site_name}.{part}"
    # PEFT writes the first spelling and reads both, the second for an adapter named "default".
    given = [name for name in (f"{stem}.weight", f"{stem}.default.weight") if name in unmet]
    if not given:
        raise AdapterRefused(
            f"tensor {stem}.weight is missing; the config adapts {site_name}",
            field=f"{stem}.weight",
        )
    if len(given) > 1:
        raise AdapterRefused(f"tensor {given[0]} is also there as {given[1]}", field=given[0])
    name = given[0]
    entry = unmet.pop(name)
    if entry.shape != shape:
        raise AdapterRefused(
            f"tensor {name} has shape {list(entry.shape)}; the config and the base need "
            f"{list(shape)}",
            field=name,
        )
    return name


def _read_tensors(path: Path, names: Mapping[int, tuple[str, str]]) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            return {
                site: (_finite(a, file.get_tensor(a)), _finite(b, file.get_tensor(b)))
                for site, (a, b) in names.items()
            }
    except SafetensorError as error:
        raise AdapterRefused(
            f"adapter_model.safetensors cannot be read: {error}", field="weights"
        ) from error


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
