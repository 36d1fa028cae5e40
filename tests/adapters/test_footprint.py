"""Pages, waste and KV room: the arithmetic, against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lorry.adapters.footprint import (
    AdapterPages,
    PageShape,
    adapter_pages,
    find_targets,
    fleet_waste,
    kv_room,
    slot_bytes,
)
from lorry.adapters.image import ImageSpec, Site

GIB = 1 << 30
HIDDEN, KV, FFN = 4096, 1024, 14336


def make_llama_8b(num_layers: int = 32) -> PageShape:
    """Llama-3.1-8B in bf16: a page of 16 tokens is 2 MiB, a unit of rank 5 MiB."""
    shapes = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KV), "v_proj": (HIDDEN, KV)}
    shapes |= {"o_proj": (HIDDEN, HIDDEN), "gate_proj": (HIDDEN, FFN), "up_proj": (HIDDEN, FFN)}
    shapes |= {"down_proj": (FFN, HIDDEN)}
    sites = [
        Site(f"model.layers.{layer}.{name}", layer, *widths)
        for layer in range(num_layers)
        for name, widths in shapes.items()
    ]
    head = Site("lm_head", num_layers, HIDDEN, 128256)
    page_elements = num_layers * 2 * 8 * 16 * 128
    return PageShape(ImageSpec(page_elements, "bfloat16", (*sites, head)), 16, 2)


def fleet_of(shape: PageShape, targets: Sequence[int], ranks: Sequence[int]) -> list[AdapterPages]:
    return [adapter_pages(shape, targets, rank) for rank in ranks]


def test_the_blueprints_figures() -> None:
    """Whoever plans a machine by these figures gets fewer tokens than were promised."""
    shape = make_llama_8b()
    targets = find_targets(shape.spec.sites, ["all-linear"], "lm_head")
    assert (shape.page_bytes, shape.token_bytes) == (2 << 20, 128 << 10)
    pages = [adapter_pages(shape, targets, rank).num_pages for rank in (8, 16, 64)]
    assert pages == [20, 40, 160]
    assert slot_bytes(shape, targets, 64) == 320 << 20
    # 32 adapters of mean rank 16.
    fleet = fleet_of(shape, targets, [8] * 24 + [16] * 4 + [64] * 4)
    rooms = [kv_room(shape, targets, fleet=fleet, pool_bytes=n * GIB) for n in (20, 24, 40, 110)]
    ratios = [room.against_padded for room in rooms]
    assert ratios == pytest.approx([1.75, 1.54, 1.25, 1.08], abs=0.006)
    assert all(room.against_closed_form == 1 for room in rooms)


def test_waste_counts_what_holds_no_weight() -> None:
    """Padding left out of the figure would make any layout look full."""
    shape = make_llama_8b(num_layers=1)
    targets = find_targets(shape.spec.sites, ["k_proj"])
    one = adapter_pages(shape, targets, 1)
    used = (HIDDEN + KV) * 2
    assert (one.num_pages, one.weight_bytes) == (1, used)
    assert one.waste == 1 - used / shape.page_bytes
    full = adapter_pages(shape, find_targets(shape.spec.sites, ["q_proj"]), 4)
    assert full.waste == 0
    assert fleet_waste([one, full]) == 1 - (used + shape.page_bytes) / (2 * shape.page_bytes)


def test_slots_or_adapters_larger_than_the_pool_leave_nothing() -> None:
    """A negative room, or a division by none."""
    shape = make_llama_8b(num_layers=1)
    targets = find_targets(shape.spec.sites, ["q_proj"])
    fleet = fleet_of(shape, targets, [4] * 3 + [64])
    room = kv_room(shape, targets, fleet=fleet, pool_bytes=20 * shape.page_bytes)
    assert (room.paged_tokens, room.padded_tokens, room.against_padded) == (16, 0, None)
    room = kv_room(shape, targets, fleet=fleet[:3], pool_bytes=2 * shape.page_bytes)
    assert (room.paged_tokens, room.against_closed_form) == (0, None)


def test_targets_are_found_as_peft_finds_them() -> None:
    """An adapter on `proj` is none on every `..._proj`, and all-linear leaves the head out."""
    sites = make_llama_8b(num_layers=2).spec.sites
    assert len(find_targets(sites, ["all-linear"], "lm_head")) == 14
    assert find_targets(sites, ["v_proj", "q_proj"]) == (0, 2, 7, 9)
    assert find_targets(sites, ["lm_head"]) == (14,)
    with pytest.raises(ValueError, match="'proj' is no linear of this model; there are q_proj, "):
        find_targets(sites, ["proj"])
