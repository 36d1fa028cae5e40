"""The model over the pool: one step's rows in, logits of the sampled places out.

Owns the pool's tensor, the table of resident adapters' tiles and the two kernels' backends.
Does not know sampling, requests or who owns a page. Used by the runner and the self-proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ...adapters.image import ImageLayout, tile_cols
from ...kernels import attention
from ...kernels.attention import AttentionBackend, AttentionOptions, AttentionWork
from ...kernels.lora import FactorTiles, LoraBackend, LoraTable, LoraWork, Segment, SiteShape
from .backends import choose_kernels, make_attention, make_lora
from .batch import Batch, StepCapacity
from .context import LoraStep
from .model import LoadedModel
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

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        """Let `slot` mean the image that lies in `pages`, in the order of the image's pages.

        Raises:
            ValueError: the layout is not one for this pool, or does not fit `pages`.
        """
        if layout.tile_cols != self._table.tile_cols or len(pages) != layout.num_pages:
            raise ValueError(
                f"an image of {layout.num_pages} pages with tiles of {layout.tile_cols} columns "
                f"does not fit {len(pages)} pages and tiles of {self._table.tile_cols}"
            )
        max_rank = max((tiles.rank for tiles in layout.sites), default=0)
        if max_rank > self.limits.max_rank:
            raise ValueError(f"rank is {max_rank}; buffers hold {self.limits.max_rank}")
        self._table.attach(slot, _place(layout, pages, self.pool_PE.shape[1]))

    def detach(self, slot: int) -> None:
        """Forget a slot; its pages may be given to others after that."""
        self._table.detach(slot)

    def poison(self, pages: Sequence[int]) -> None:
        """Fill pages with NaN: whoever reads them without having written them will show."""
        if pages:
            self.pool_PE.index_fill_(0, self._page_idx(pages), torch.nan)
            self._lora.forget()

    def clear(self, pages: Sequence[int]) -> None:
        """Fill pages with zeros."""
        if pages:
            self.pool_PE.index_fill_(0, self._page_idx(pages), 0)
            self._lora.forget()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [wanted places, V] in the model's dtype; new keys and values go to their pages."""
        lora_step = self._lora_step(batch.segments, len(batch.input_ids_T))
        head_step = self._lora_step(self._at_head(batch), len(batch.sample_idx))
        if lora_step is not None:
            self._lora.prepare([lora_step.work, head_step and head_step.work])
        self._prepare(_Step(batch, lora_step, head_step), fixed=False)
        return self.compute()

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

    def _lora_step(self, segments: Sequence[Segment], num_rows: int) -> LoraStep | None:
        if not segments:
            return None
        return LoraStep(LoraWork(self._table, segments), self.pool_PE, num_rows, self._lora)

    def _at_head(self, batch: Batch) -> list[Segment]:
        """Of adapters that have a head: most have none, and its product is then left out."""
        return [
            segment
            for segment in batch.head_segments
            if any(site in self._table.factors(segment.slot) for site in self._head_sites)
        ]

    def _page_idx(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(list(pages), dtype=torch.int64, device=self.pool_PE.device)


def _place(layout: ImageLayout, pages: Sequence[int], page_elements: int) -> dict[int, FactorTiles]:
    """Offsets in the image become offsets in the pool: all of them in a few array operations."""
    parts = [offsets for tiles in layout.sites for offsets in (tiles.a_offsets, tiles.b_offsets)]
    sizes = [len(offsets) for offsets in parts]
    image = np.fromiter(chain.from_iterable(parts), dtype=np.int64, count=sum(sizes))
    page, within = np.divmod(image, page_elements)
    starts = np.asarray(pages, dtype=np.int64) * page_elements
    if image.size and not 0 <= page.min() <= page.max() < len(starts):
        wrong = page.min() if page.min() < 0 else page.max()
        raise ValueError(f"a tile lies in page {wrong} of an image of {len(starts)} pages")
    placed = torch.from_numpy(starts[page] + within).split(sizes)
    return {
        tiles.site: FactorTiles(tiles.rank, tiles.scale, placed[2 * i], placed[2 * i + 1])
        for i, tiles in enumerate(layout.sites)
    }


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
