"""The model over the pool: one step's rows in, logits of the sampled places out.

Owns the pool's tensor, the table of resident adapters' tiles and the two kernels' backends.
Does not know sampling, requests or who owns a page. Used by the runner and the self-proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.host_tier import HeldImage
from ...adapters.image import ImageLayout, tile_cols
from ...kernels import attention, lora
from ...kernels.attention import AttentionBackend, AttentionOptions, AttentionWork
from ...kernels.lora import FactorTiles, LoraBackend, LoraTable, LoraWork, Segment, SiteShape
from .backends import choose_kernels, make_attention, make_lora
from .batch import Batch, StepCapacity, StepRow
from .cold_start.slots import ColdSlots
from .cold_start.step import BODY, ColdEnd, ColdProducts, ColdRooms, ColdRows
from .context import LoraStep
from .model import LoadedModel
from .placing import place_tiles
from .sites import find_sites


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What is computed next."""

    batch: Batch
    lora: LoraStep | None
    head: LoraStep | None


class PagedModel:
    """Runs batches; whoever calls keeps page numbers and slots apart."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        limits: StepCapacity,
        kernels: str = "auto",
        attention_backend: AttentionBackend | None = None,
        lora_backend: LoraBackend | None = None,
    ) -> None:
        geometry = loaded.geometry
        self.loaded = loaded
        self.limits = limits
        # Zeroed and not just reserved: the memory is taken now, not at the first bad moment.
        self.pool_PE = torch.zeros(
            num_pages, geometry.page_elements, dtype=loaded.dtype, device=loaded.device
        )
        self._kv_PL2GZK = attention.view_kv(
            self.pool_PE,
            num_layers=geometry.num_layers,
            num_kv_heads=geometry.num_kv_heads,
            tokens_per_page=geometry.tokens_per_page,
            head_dim=geometry.head_dim,
        )
        self._table = LoraTable(
            [SiteShape(site.in_width, site.out_width) for site in loaded.image_spec.sites],
            tile_cols=tile_cols(geometry.page_elements),
            pool_elements=self.pool_PE.numel(),
        )
        sites = find_sites(loaded.model)
        self._head_sites = [site for site, module in sites.items() if module.at_head]
        kernels = choose_kernels(kernels, loaded.device)
        self._step: _Step | None = None  # prepared last
        self._attention = attention_backend or make_attention(kernels, loaded, limits)
        self._lora = lora_backend or make_lora(kernels, loaded, limits, self._table)
        # A CPU's path lays all of an adapter out at its first product; of one that is on its way
        # there is only what has landed.
        self._cold_lora = self._lora if kernels == "triton" else lora.choose_backend("dense")
        layer_of = [site.layer for site in loaded.image_spec.sites]
        self._cold = ColdSlots(layer_of, loaded.siblings)

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        """Let `slot` mean the image that lies in `pages`, in the order of the image's pages.

        Raises:
            ValueError: the layout is not one for this pool, or does not fit `pages`.
        """
        cold = self._cold.close(slot)
        if cold is not None and cold.layout is layout and cold.pages == tuple(pages):
            # Placed and checked when it was opened: that takes milliseconds.
            self._table.renew(slot)
        else:
            self._table.attach(slot, self._place(layout, pages))

    def use_cold(self, rooms: ColdRooms) -> None:
        """What slots that are attached cold need; before the first of them."""
        self._cold.use(rooms)

    def attach_cold(self, slot: int, image: HeldImage, pages: Sequence[int]) -> None:
        """Let `slot` mean an image that is on its way to `pages`. The caller holds the image until
        the slot is attached or detached; until then its rows need a way.

        Raises:
            ValueError: as `attach`; or this model has no rooms for cold steps.
        """
        factors = self._place(image.layout, pages)
        self._cold.open(slot, image, pages)
        try:
            self._table.attach(slot, factors)
        except ValueError:
            self._cold.close(slot)
            raise

    def has_cold(self, rows: Sequence[StepRow]) -> bool:
        """Whether a slot of these rows is cold."""
        return self._cold.has(row.adapter_slot for row in rows)

    def detach(self, slot: int) -> None:
        """Forget a slot; its pages and its image may be given to others after that."""
        self._cold.close(slot)
        self._table.detach(slot)

    def poison(self, pages: Sequence[int]) -> None:
        """Fill pages with NaN: whoever reads them without having written them will show."""
        if pages:
            self.pool_PE.index_fill_(0, self._page_idx(pages), torch.nan)
            self._lora.forget()
            self._cold_lora.forget()

    def clear(self, pages: Sequence[int]) -> None:
        """Fill pages with zeros."""
        if pages:
            self.pool_PE.index_fill_(0, self._page_idx(pages), 0)
            self._lora.forget()
            self._cold_lora.forget()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [wanted places, V] in the model's dtype; new keys and values go to their pages."""
        segments = (batch.segments, self._at_head(batch))
        num_rows = (len(batch.input_ids_T), len(batch.sample_idx))
        works = [self._work(self._cold.split(part)[0]) for part in segments]
        if works[BODY] is not None:
            self._lora.prepare(works)
        cold = self._cold_rows(batch, segments, works)
        steps = [
            LoraStep(work, self.pool_PE, count, self._lora, rows) if work or rows else None
            for work, count, rows in zip(works, num_rows, cold, strict=True)
        ]
        self._prepare(_Step(batch, *steps), fixed=False)
        return self.compute()

    def end_cold(self) -> ColdEnd:
        """Who could not be given products in time by the last step; its device is done."""
        return self._cold.end()

    def prepare(self, batch: Batch, *, with_lora: bool) -> None:
        """Make a bucket's step the one that `compute` computes: what is launched then depends on
        the bucket and on `with_lora` alone.

        `with_lora`: adapters' products are computed, be they of no row; without it there are none.
        """
        steps: list[LoraStep | None] = [None, None]
        if with_lora:
            parts = (batch.segments, self._at_head(batch))
            works = [LoraWork(self._table, part) for part in parts]
            self._lora.prepare(works, fixed=True)
            num_rows = len(batch.input_ids_T)
            steps = [LoraStep(work, self.pool_PE, num_rows, self._lora) for work in works]
        self._prepare(_Step(batch, *steps), fixed=True)

    def _prepare(self, step: _Step, *, fixed: bool) -> None:
        work = step.batch.attention
        if self._attention.needs_clear:
            attention.clear_fresh(self._kv_PL2GZK, work)
        self._attention.prepare(work, fixed=fixed)
        self._step = step

    def reads(self) -> list[Tensor]:
        """Where the prepared step lies, beside what the backends took when they were made."""
        assert self._step is not None, "nothing was prepared"
        batch = self._step.batch
        return [batch.input_ids_T, batch.position_T, batch.sample_idx, self.pool_PE]

    @torch.inference_mode()
    def compute(self) -> Tensor:
        """Logits of the step that was prepared last."""
        context, step = self.loaded.context, self._step
        assert step is not None, "nothing was prepared"
        batch = step.batch
        context.attend = _Attend(self._kv_PL2GZK, batch.attention, self._attention)
        context.lora, context.head = step.lora, step.head
        try:
            out = self.loaded.model(
                input_ids=batch.input_ids_T[None],
                position_ids=batch.position_T[None],
                use_cache=False,
                logits_to_keep=batch.sample_idx,
            )
        finally:
            context.clear()
        return out.logits[0]

    def _place(self, layout: ImageLayout, pages: Sequence[int]) -> dict[int, FactorTiles]:
        if layout.tile_cols != self._table.tile_cols or len(pages) != layout.num_pages:
            raise ValueError(
                f"an image of {layout.num_pages} pages with tiles of {layout.tile_cols} columns "
                f"does not fit {len(pages)} pages and tiles of {self._table.tile_cols}"
            )
        max_rank = max((tiles.rank for tiles in layout.sites), default=0)
        if max_rank > self.limits.max_rank:
            raise ValueError(f"rank is {max_rank}; buffers hold {self.limits.max_rank}")
        return place_tiles(layout, pages, self.pool_PE.shape[1])

    def _work(self, segments: Sequence[Segment]) -> LoraWork | None:
        return LoraWork(self._table, segments) if segments else None

    def _cold_rows(
        self,
        batch: Batch,
        segments: Sequence[Sequence[Segment]],
        warm: Sequence[LoraWork | None],
    ) -> list[ColdRows | None]:
        """Of body and head; None: no row of it is cold."""
        step = self._cold.begin(batch.segments, batch.ways)
        if step is None:
            return [None] * len(segments)
        products = ColdProducts(self._cold_lora, self._table, self.pool_PE, warm=warm)
        parts = [self._cold.split(part)[1] for part in segments]
        return [
            ColdRows(step, part, cold, table=self._table, products=products) if cold else None
            for part, cold in enumerate(parts)
        ]

    def _at_head(self, batch: Batch) -> list[Segment]:
        """Of adapters that have a head: most have none, and its product is then left out."""
        return [
            segment
            for segment in batch.head_segments
            if any(site in self._table.factors(segment.slot) for site in self._head_sites)
        ]

    def _page_idx(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(list(pages), dtype=torch.int64, device=self.pool_PE.device)


class _Attend:
    """Attention of one step: store the new keys and values, then attend over the pages."""

    __slots__ = ("_backend", "_kv_PL2GZK", "_work")

    def __init__(self, kv_PL2GZK: Tensor, work: AttentionWork, backend: AttentionBackend) -> None:
        self._kv_PL2GZK = kv_PL2GZK
        self._work = work
        self._backend = backend

    def __call__(
        self,
        layer: int,
        query_THK: Tensor,
        key_TGK: Tensor,
        value_TGK: Tensor,
        options: AttentionOptions,
    ) -> Tensor:
        attention.write_kv(
            key_TGK,
            value_TGK,
            self._kv_PL2GZK,
            self._work,
            layer=layer,
            backend=self._backend,
        )
        return attention.paged_attention(
            query_THK,
            self._kv_PL2GZK,
            self._work,
            layer=layer,
            options=options,
            backend=self._backend,
        )
