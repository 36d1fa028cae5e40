"""From an announcement to an image on disk and the facts its card shows.

Owns the order of the checks: what an upload announces, then all that its config alone decides
(modules, ranks, pages), before a byte of weights is sent or read; then the weights. The same
path packs again when a layout changes. Knows no names and no rows; called by the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import AdapterRefused, AdapterTooLarge
from .format import AdapterConfig, base_notes, match_sites, read_weights
from .image import ImageLayout, ImageSpec, SiteRank, plan_image
from .image_file import write_image
from .index import ImageFacts
from .limits import StoreLimits
from .names import shown
from .packing import DTYPES, pack_measured
from .resolve import PeftResolver

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What a config alone decides."""

    spec: ImageSpec
    applied: Mapping[str, object]  # the fields PEFT is asked about
    ranks: tuple[SiteRank, ...]  # by site
    layout: ImageLayout
    notes: tuple[str, ...]


def check_announcement(size_bytes: int, sha256: str, limits: StoreLimits) -> None:
    """Raises AdapterRefused or AdapterTooLarge for what an upload says of its bytes."""
    if size_bytes < 1:
        raise AdapterRefused(
            f"size_bytes is {size_bytes}; an adapter has at least 1", field="size_bytes"
        )
    if size_bytes > limits.max_upload_bytes:
        raise AdapterTooLarge(
            f"size_bytes is {size_bytes}; this server takes up to {limits.max_upload_bytes}",
            field="size_bytes",
            value=size_bytes,
            limit=limits.max_upload_bytes,
            unit="bytes",
        )
    if not _SHA256.fullmatch(sha256):
        raise AdapterRefused(
            f"sha256 is {shown(sha256)}; it must be 64 hexadecimal digits", field="sha256"
        )


def check_size(max_rank: int, num_pages: int, limits: StoreLimits, max_pages: int | None) -> None:
    """Raises AdapterTooLarge for ranks and pages as PEFT and the layout make them.

    A config's own numbers are not enough: what it leaves out gets PEFT's default.
    """
    if max_rank > limits.max_rank:
        raise AdapterTooLarge(
            f"this adapter has a module of rank {max_rank}; this server takes ranks up to "
            f"{limits.max_rank} (a config without r means PEFT's default)",
            field="r",
            value=max_rank,
            limit=limits.max_rank,
            unit="ranks",
        )
    if max_pages is not None and num_pages > max_pages:
        raise AdapterTooLarge(
            f"this adapter takes {num_pages} pages of the pool; an adapter may take {max_pages}",
            field="config_json",
            value=num_pages,
            limit=max_pages,
            unit="pages",
        )


def plan_adapter(
    config: AdapterConfig,
    spec: ImageSpec,
    resolver: PeftResolver,
    limits: StoreLimits,
    *,
    max_pages: int | None,
) -> AdapterPlan:
    """Raises AdapterRefused or AdapterTooLarge, naming the config's field."""
    resolution = resolver.resolve(config.applied)
    ranks = match_sites(resolution, spec)
    max_rank = max(rank.rank for rank in ranks)
    check_size(max_rank, 0, limits, None)  # before a layout is made for such a rank
    layout = plan_image(spec, ranks)
    check_size(max_rank, layout.num_pages, limits, max_pages)
    notes = (*base_notes(config.base_name, resolver.base_name), *resolution.notes)
    return AdapterPlan(spec, config.applied, ranks, layout, notes)


def pack_adapter(
    plan: AdapterPlan, weights_path: Path, resolver: PeftResolver, *, image_path: Path
) -> ImageFacts:
    """Check the weights, pack them, and write the image.

    Raises:
        AdapterRefused: naming the tensor; nothing is left at `image_path`.
    """
    spec, layout = plan.spec, plan.layout
    locate = partial(resolver.locate, plan.applied)
    read = read_weights(weights_path, spec, plan.ranks, locate)
    packed = pack_measured(spec, layout, read.weights)
    write_image(image_path, layout, packed.pages)
    site_names = {spec.sites[rank.site].name.rpartition(".")[2] for rank in plan.ranks}
    return ImageFacts(
        num_pages=layout.num_pages,
        weight_bytes=layout.used_elements * DTYPES[spec.dtype].itemsize,
        max_rank=max(rank.rank for rank in plan.ranks),
        target_modules=tuple(sorted(site_names)),
        rounding_error=packed.rounding_error,
        notes=(*plan.notes, *read.notes),
        base_seen=spec.base_fingerprint if read.has_base_weights else "",
    )
