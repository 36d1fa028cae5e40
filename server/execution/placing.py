"""Where an image's tiles lie once its pages have places: in the pool, or in host memory.

Owns the arithmetic from offsets in an image to offsets in whatever its pages lie in, all of them in
a few array operations. Knows no slots and no bytes. Called by paged_model.py for pages of the pool
and by the helpers for cells of the slab (cold_start).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from ...adapters.image import ImageLayout
from ...kernels.lora import FactorTiles


def place_tiles(
    layout: ImageLayout, pages: Sequence[int], page_elements: int
) -> dict[int, FactorTiles]:
    """By site; `pages`: where each of the image's pages lies, in units of a page.

    Raises:
        ValueError: a tile lies outside the image's pages.
    """
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
