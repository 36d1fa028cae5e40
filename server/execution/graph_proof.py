"""Recorded decode steps against the path that the self-proof has proved.

Owns the random steps, one for each recording, and how far it may be off. Tokens, positions, pages
and adapters are drawn anew for each, so that a recording that kept a number of the step it was
made of shows; so does one that stores no key. Works over the server's own pool, before anything
is served, and leaves it zeroed. Called by the runner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ..scheduling.sampling import SamplingParams
from .batch import Batch, StepBuffers, StepCapacity, StepRow, build_batch
from .paged_model import PagedModel
from .selfproof import FP32_BOUND
from .warm_up import warm_up_layouts

# Of the range of what is compared. In 16 bits two sound paths differ by their roundings, some
# hundredths at most, and a row that is given another's number by a good part of the range.
HALF_BOUND = 0.05
MIN_KV_PAGES = 16  # to read keys and values from
# What an adapter adds is about so large beside what it is given.
LORA_SHARE = 0.5

Replayed = Callable[[Batch, int], Tensor]  # (a step of this bucket) -> its logits


@dataclass(frozen=True, slots=True)
class _Pages:
    kv: range
    adapters: range
    num_slots: int


def replay_bound(dtype: torch.dtype) -> float:
    return FP32_BOUND if dtype == torch.float32 else HALF_BOUND


def num_kv_pages(limits: StepCapacity, tokens_per_page: int) -> int:
    """Pages that the proof wants beside those of an adapter: each row writes a cell of its own."""
    return max(MIN_KV_PAGES, -(-limits.max_running // tokens_per_page))


@torch.inference_mode()
def replays_off(
    paged: PagedModel, buffers: StepBuffers, buckets: Sequence[int], replay: Replayed
) -> float:
    """The largest error of all recordings, in logits and in what is stored, of their range."""
    pages = _lay_out(paged)
    random, worst, below = Random(0), 0.0, 0
    for bucket in buckets:
        num_rows = random.randint(below + 1, max(below + 1, bucket - 1))
        below = bucket
        # Without adapters, and with them where the pool holds one.
        for slots in ([-1], range(pages.num_slots)):
            if not slots:
                continue
            rows = _random_step(paged, pages, num_rows, slots, random)
            theirs = _outcome(paged, pages, paged.forward(_filled(paged, pages, rows, buffers, 0)))
            step = _filled(paged, pages, rows, buffers, bucket)
            ours = _outcome(paged, pages, replay(step, bucket))
            worst = max(worst, *map(_off, ours, theirs))
    for slot in range(pages.num_slots):
        paged.detach(slot)
    paged.clear([*pages.kv, *pages.adapters])
    return worst


def _lay_out(paged: PagedModel) -> _Pages:
    """Adapters of random numbers behind the pages for keys and values."""
    loaded, num_pages = paged.loaded, len(paged.pool_PE)
    wanted = num_kv_pages(paged.limits, loaded.geometry.tokens_per_page)
    num_kv = min(wanted, num_pages)
    layouts = warm_up_layouts(loaded.image_spec, paged.limits.max_rank, num_pages - num_kv)
    num_adapter_pages = max((layout.num_pages for layout in layouts), default=0)
    adapters = range(num_kv, num_kv + num_adapter_pages)
    for slot, layout in enumerate(layouts):
        paged.attach(slot, layout, adapters[: layout.num_pages])
    # A and B alike, so that the largest rank at the widest site adds its share.
    rank = max((tiles.rank for layout in layouts for tiles in layout.sites), default=1)
    width = max(site.in_width for site in loaded.image_spec.sites)
    _fill(paged, adapters, (LORA_SHARE / math.sqrt(width * rank)) ** 0.5)
    return _Pages(range(num_kv), adapters, len(layouts))


def _random_step(
    paged: PagedModel, pages: _Pages, num_rows: int, slots: Sequence[int], random: Random
) -> list[StepRow]:
    """Tokens at places of every length; all write to cells of their own, and read each other's."""
    size, limits = paged.loaded.geometry.tokens_per_page, paged.limits
    cells = [(page, at) for page in pages.kv for at in range(min(size, limits.max_model_len))]
    num_rows = min(num_rows, len(cells))  # a tiny pool
    max_full = limits.max_model_len // size  # pages before the one that is written
    # One row has the last adapter, some have none.
    picks = [slots[-1], *random.choices([-1, *slots], k=num_rows - 1)]
    rows: list[StepRow] = []
    for row, (slot, (page, at)) in enumerate(
        zip(sorted(picks), random.sample(cells, num_rows), strict=True)
    ):
        num_full = int(max(max_full, 1) ** random.random()) - 1
        held = [*random.choices(pages.kv, k=num_full), page]
        token = random.randrange(paged.loaded.vocab_size)
        start = num_full * size + at
        rows.append(StepRow(row, [token], 1, start, held, slot, True, SamplingParams()))
    return rows


def _filled(
    paged: PagedModel, pages: _Pages, rows: Sequence[StepRow], buffers: StepBuffers, bucket: int
) -> Batch:
    """The step over the same random keys and values each time."""
    _fill(paged, pages.kv, 1.0)
    return build_batch(rows, buffers, bucket=bucket)


def _fill(paged: PagedModel, pages: range, deviation: float) -> None:
    """Numbers that depend on the place alone."""
    generator = torch.Generator(paged.pool_PE.device).manual_seed(0)
    paged.pool_PE[pages.start : pages.stop].normal_(0, deviation, generator=generator)


def _outcome(paged: PagedModel, pages: _Pages, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    return logits_BV, paged.pool_PE[pages.kv.start : pages.kv.stop].clone()


def _off(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    wide = theirs.float()
    error = float((ours.float() - wide).abs().max() / (wide.max() - wide.min()))
    return math.inf if math.isnan(error) else error
