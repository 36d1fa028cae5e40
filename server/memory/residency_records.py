"""What residency keeps and says: where an adapter is, and what has become of it.

Plain records. Made by residency.py; read by the engine (adapter_news.py), which attaches,
detaches and answers, and by statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ...adapters.host_tier import HeldImage
from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard, AdapterKey
from .link_records import LoadOrder
from .usage import AdapterUsage


class Place(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(frozen=True, slots=True)
class Opening:
    """A load under way may be used, layer by layer: attach it cold. The image is held for whoever
    hears this, who lets go of it (`Link.let_go`).
    """

    adapter_id: int
    slot: int
    pages: tuple[int, ...]
    image: HeldImage


@dataclass(frozen=True, slots=True)
class Applied:
    """What a plan had residency do."""

    orders: tuple[LoadOrder, ...]
    openings: tuple[Opening, ...]  # of those orders, the ones that are open at once


@dataclass(frozen=True, slots=True)
class Arrived:
    """An adapter has become resident: attach it, and tell the scheduler's table."""

    adapter_id: int
    slot: int
    pages: tuple[int, ...]
    layout: ImageLayout


@dataclass(frozen=True, slots=True)
class Broken:
    """A load failed; its pages are free again. Those who name the adapter must be answered."""

    adapter_id: int
    error: Exception  # AdapterError


News = Opening | Arrived | Broken


@dataclass(frozen=True, slots=True)
class Departed:
    """An adapter is not resident any more, or a doomed one has been let go of."""

    key: AdapterKey
    slot: int  # to detach; -1: neither `Opening` nor `Arrived` has announced it
    released: bool  # deleted or replaced and without users: nothing of it will be asked for again


@dataclass(frozen=True, slots=True)
class ResidentStats:
    key: AdapterKey
    adapter_id: int
    num_pages: int
    loading: bool
    num_users: int  # requests that name it, waiting or running


@dataclass(frozen=True, slots=True)
class Met:
    """Where one adapter is, and what its requests have seen of it."""

    place: Place
    pinned: bool
    num_pages: int  # held
    num_users: int  # requests that name it, waiting or running
    usage: AdapterUsage | None  # None: nobody has asked for it, or it was too long ago


@dataclass(slots=True)
class Entry:
    """What residency keeps of one adapter that is in use, in the pool or on its way."""

    card: AdapterCard
    place: Place = Place.ABSENT
    slot: int = -1
    load_id: int = -1  # of the load under way
    landed_layers: int = 0  # of the load under way: layers 0 to this one, excluded, are there
    num_users: int = 0
    last_used_s: float = 0.0
    doomed: bool = False
    prefetched: bool = False  # the load under way was ordered for nobody in the line
    is_open: bool = False  # of the load under way: it was announced by `Opening`
    can_help: bool = False  # of the load under way: helpers may compute it
    given_up: bool = False  # the load under way is cancelled: whoever comes now may not begin on it
