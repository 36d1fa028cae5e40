"""The model over the pool: one step's rows in, logits of the sampled places out.

Owns the pool's tensor, the table of resident adapters' tiles and the two kernels' backends.
Does not know sampling, requests or who owns a page. Used by the runner and the self-proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ...adapters.image import ImageLayout, tile_cols
from ...kernels import attention, lora
from ...kernels.attention import AttentionBackend, AttentionOptions, AttentionWork
from ...kernels.lora import FactorTiles, LoraBackend, LoraTable, LoraWork, Segment, SiteShape
from .batch import Batch, StepCapacity
from .context import LoraStep
from .model import LoadedModel
from .workspace_size import make_workspace


class PagedModel:
    """Runs batches; whoever calls keeps page numbers and slots apart."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        limits: StepCapacity,
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
        self._attention = attention_backend or attention.choose_backend("cpu")
        self._lora = lora_backend or lora.choose_backend(
            "cpu", workspace=make_workspace(loaded, limits.workspace_rows)
        )

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

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits [wanted places, V] in the model's dtype; new keys and values go to their pages."""
        work = batch.attention
        attention.clear_fresh(self._kv_PL2GZK, work)
        context = self.loaded.context
        context.attend = _Attend(self._kv_PL2GZK, work, self._attention)
        context.lora = self._lora_step(batch.segments, batch.attention.num_tokens)
        context.head = self._lora_step(batch.head_segments, len(batch.sample_idx))
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
        attention.write_kv(key_TGK, value_TGK, self._kv_PL2GZK, self._work, layer=layer)
        return attention.paged_attention(
            query_THK,
            self._kv_PL2GZK,
            self._work,
            layer=layer,
            options=options,
            backend=self._backend,
        )
