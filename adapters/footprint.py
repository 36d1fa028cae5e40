"""What adapters take of a pool, and what they leave for keys and values: arithmetic alone.

Owns the comparison with padded slots, as vLLM (`max_loras` x `max_lora_rank`) and SGLang
(`max-loras-per-batch`) reserve them beside the KV, and the closed form that no paging can beat.
An image's pages come from image.py's own rule. Knows no model and no pool; called by
`lorry info --memory` and by `lorry bench memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .image import ImageSpec, Site, SiteRank, plan_image

ALL_LINEAR = "all-linear"  # PEFT's word: every linear but the output layer


@dataclass(frozen=True, slots=True)
class PageShape:
    """A page as a KV block and as room for tiles."""

    spec: ImageSpec
    tokens_per_page: int
    element_bytes: int

    @property
    def page_bytes(self) -> int:
        return self.spec.page_elements * self.element_bytes

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return self.page_bytes // self.tokens_per_page


@dataclass(frozen=True, slots=True)
class AdapterPages:
    """One adapter of one rank on all targeted sites."""

    rank: int
    num_pages: int
    weight_bytes: int  # at its true rank, without padding
    page_bytes: int  # of one page

    @property
    def waste(self) -> float:
        """Share of its pages that holds no weight."""
        return 1 - self.weight_bytes / (self.num_pages * self.page_bytes)


@dataclass(frozen=True, slots=True)
class KvRoom:
    """How many tokens of KV a pool holds beside a fleet of resident adapters."""

    pool_bytes: int
    adapter_pages: int
    paged_tokens: int  # adapters in pages at their true ranks
    padded_tokens: int  # as many slots, all as wide as the largest rank; 0: they do not fit
    closed_form_tokens: float  # not one byte lost to pages

    @property
    def against_padded(self) -> float | None:
        """None: the padded slots leave no room."""
        return self.paged_tokens / self.padded_tokens if self.padded_tokens else None

    @property
    def against_closed_form(self) -> float | None:
        """None: the adapters alone are more than the pool."""
        return self.paged_tokens / self.closed_form_tokens if self.closed_form_tokens > 0 else None


def find_targets(sites: Sequence[Site], targets: Sequence[str], head: str = "") -> tuple[int, ...]:
    """Sites that an adapter with these `target_modules` changes; `head` is the output layer.

    Raises:
        ValueError: a target that no site has.
    """
    if list(targets) == [ALL_LINEAR]:
        return tuple(idx for idx, site in enumerate(sites) if site.name != head)
    found: set[int] = set()
    for target in targets:
        named = {i for i, s in enumerate(sites) if s.name == target or _ends(s.name, target)}
        if not named:
            known = ", ".join(dict.fromkeys(site.name.rpartition(".")[2] for site in sites))
            raise ValueError(f"{target!r} is no linear of this model; there are {known}")
        found |= named
    return tuple(sorted(found))


def adapter_pages(shape: PageShape, targets: Sequence[int], rank: int) -> AdapterPages:
    """`targets`: indices into the spec's sites."""
    layout = plan_image(shape.spec, [SiteRank(site, rank, 1.0) for site in targets])
    weight_bytes = layout.used_elements * shape.element_bytes
    return AdapterPages(rank, layout.num_pages, weight_bytes, shape.page_bytes)


def slot_bytes(shape: PageShape, targets: Sequence[int], max_rank: int) -> int:
    """A padded slot: A and B of every targeted site at the largest rank."""
    sites = [shape.spec.sites[idx] for idx in targets]
    return shape.element_bytes * max_rank * sum(site.in_width + site.out_width for site in sites)


def fleet_waste(fleet: Sequence[AdapterPages]) -> float:
    """Share of all their pages that holds no weight."""
    return 1 - sum(one.weight_bytes for one in fleet) / sum(
        one.num_pages * one.page_bytes for one in fleet
    )


def kv_room(
    shape: PageShape, targets: Sequence[int], *, fleet: Sequence[AdapterPages], pool_bytes: int
) -> KvRoom:
    """`fleet`: the resident adapters on these targets; as many padded slots stand against them."""
    taken_pages = sum(one.num_pages for one in fleet)
    free_pages = pool_bytes // shape.page_bytes - taken_pages
    one_slot_bytes = slot_bytes(shape, targets, max(one.rank for one in fleet))
    left_bytes = pool_bytes - len(fleet) * one_slot_bytes
    exact_bytes = pool_bytes - sum(one.weight_bytes for one in fleet)
    return KvRoom(
        pool_bytes=pool_bytes,
        adapter_pages=taken_pages,
        paged_tokens=max(0, free_pages) * shape.tokens_per_page,
        padded_tokens=max(0, left_bytes) // shape.page_bytes * shape.tokens_per_page,
        closed_form_tokens=max(0, exact_bytes) / shape.token_bytes,
    )


def _ends(name: str, target: str) -> bool:
    return name.endswith("." + target)
