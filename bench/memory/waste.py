"""How much of their pages adapters waste, and how much KV fits beside them: arithmetic, exact.

Owns the models (config files in models/, their public numbers), the targets and the two fleets: a
rank of each from 4 to 128 for the waste, and 32 adapters of mean rank 16 against 32 slots of rank
64 for the room, in pools that are the same multiples of those slots for every model: 20, 24, 40 and
110 GiB on Llama-3.1-8B. No weight is read. Called by command.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...adapters.footprint import (
    ALL_LINEAR,
    AdapterPages,
    KvRoom,
    adapter_pages,
    find_targets,
    fleet_waste,
    kv_room,
    slot_bytes,
)
from ...server.execution.meta_model import ModelMemory, read_model_memory

MODELS_DIR = Path(__file__).parent / "models"
MODELS = ("llama-3.1-8b", "qwen2.5-7b", "qwen2.5-0.5b", "gemma3-1b")
# All linears, S-LoRA's four, and PEFT's default for most families.
TARGETS = ((ALL_LINEAR,), ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj"))
RANKS = (4, 8, 16, 32, 64, 128)
ROOM_FLEET = {4: 8, 8: 8, 16: 10, 32: 4, 64: 2}  # rank -> adapters
POOL_PER_SLOTS = (2.0, 2.4, 4.0, 11.0)  # pools, in what the padded slots take


@dataclass(frozen=True, slots=True)
class Footprint:
    """One model and one set of targets."""

    model: str
    targets: str  # by commas
    page_bytes: int
    tokens_per_page: int
    by_rank: tuple[AdapterPages, ...]
    rooms: tuple[KvRoom, ...]  # by pool

    @property
    def waste(self) -> float:
        """Of an adapter of each rank, all together."""
        return fleet_waste(self.by_rank)

    @property
    def worst_rank(self) -> AdapterPages:
        return max(self.by_rank, key=lambda one: one.waste)

    @property
    def room_vs_closed_form(self) -> float:
        """In the pool where it is least."""
        return min(room.against_closed_form or 0.0 for room in self.rooms)


def measure_waste(
    models: Sequence[str] = MODELS, targets: Sequence[Sequence[str]] = TARGETS
) -> list[Footprint]:
    found: list[Footprint] = []
    for name in models:
        model = read_model_memory(MODELS_DIR / f"{name}.json")
        found += [_footprint(name, model, of) for of in targets]
    return found


def _footprint(name: str, model: ModelMemory, targets: Sequence[str]) -> Footprint:
    shape = model.shape
    sites = find_targets(shape.spec.sites, targets, model.head)
    pages = {rank: adapter_pages(shape, sites, rank) for rank in RANKS}
    fleet = [pages[rank] for rank, count in ROOM_FLEET.items() for _ in range(count)]
    slots_bytes = len(fleet) * slot_bytes(shape, sites, max(ROOM_FLEET))
    return Footprint(
        model=name,
        targets=",".join(targets),
        page_bytes=shape.page_bytes,
        tokens_per_page=shape.tokens_per_page,
        by_rank=tuple(pages.values()),
        rooms=tuple(
            kv_room(shape, sites, fleet=fleet, pool_bytes=int(times * slots_bytes))
            for times in POOL_PER_SLOTS
        ),
    )
