"""The identity of an adapter, and the card the rest of the house keeps of it.

Everything that caches, pages or routes an adapter is keyed by `AdapterKey`: a new upload
under an old name is another key, so old weights and old KV can never be met under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True, order=True)
class AdapterKey:
    tenant: str
    name: str
    version: int  # 1, 2, ... per tenant and name; never used twice, not even after a delete
    content_hash: str  # SHA-256 (hex) over the digests of config and weights as uploaded

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What is known of one stored adapter without opening its files."""

    key: AdapterKey
    size_bytes: int  # of adapter_model.safetensors as uploaded
    max_rank: int
    num_pages: int  # of its image
    weight_bytes: int  # at true ranks in the pool's dtype, no padding
    target_modules: tuple[str, ...]  # sorted last names of the modules it changes: q_proj, ...
    created_unix_s: float
    rounding_error: float  # largest absolute change of a weight by the cast to the pool's dtype
    notes: tuple[str, ...]  # worth telling, not worth refusing
    image_path: Path  # of the packed image for the layout in use


@dataclass(frozen=True, slots=True)
class Stored:
    """An upload that is durable."""

    card: AdapterCard
    replaced: AdapterKey | None  # the version it took over from: the engine has to forget it
    created: bool  # False: this very content was there already, nothing changed


@dataclass(frozen=True, slots=True)
class CardPage:
    """Part of a list of adapters."""

    cards: tuple[AdapterCard, ...]  # by name
    next_after: str  # `after` of the next page; empty: this was the last
    total: int  # adapters of the tenant whose names begin with the prefix
