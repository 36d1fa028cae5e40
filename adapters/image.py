"""The page image of an adapter: where each tile of its A and B lies.

Owns the layout rule, pure and without torch; packing.py moves the numbers. An image is
`num_pages` pages of `page_elements` elements; a tile is at most 16 rank rows x `tile_cols`
columns, never straddles a page, starts at a multiple of 64 elements and has a row stride that
is a multiple of 16. Does not know where in the pool the pages will lie, nor what a rank costs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TILE_ROWS = 16
MAX_TILE_COLS = 512
TILE_ALIGN = 64  # elements; a tile's start
STRIDE_ALIGN = 16  # elements; a tile's row stride
OPEN_PAGES = 4  # so many of the last pages still take tiles
IMAGE_VERSION = 2  # part of the fingerprint; raise it when the layout rule changes


@dataclass(frozen=True, slots=True)
class Site:
    """One linear of the base that an adapter may change."""

    name: str  # as in model.named_modules(): model.layers.0.self_attn.q_proj
    layer: int  # decoder layer; sites are listed layer by layer
    in_width: int
    out_width: int


@dataclass(frozen=True, slots=True)
class BaseWeight:
    """A weight of the base that PEFT may save with an adapter (head, embedding): to be the same."""

    # Its module, as in model.named_modules(): lm_head, model.embed_tokens. A bias is listed with
    # its own name behind that: lm_head.bias.
    name: str
    shape: tuple[int, ...]
    # (dtype, SHA-256 of the weight's bytes in that dtype, row-major), by the names of dtypes: what
    # was saved in a lower precision than the base's equals the base rounded to it.
    hashes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What the base and the pool say about every image."""

    page_elements: int
    dtype: str  # float32, bfloat16, float16: the pool's
    sites: tuple[Site, ...]
    base_weights: tuple[BaseWeight, ...] = ()  # not part of the fingerprint: no image holds them

    @property
    def fingerprint(self) -> str:
        """Of everything an image depends on: two images are alike only under one fingerprint."""
        facts = [
            IMAGE_VERSION,
            [TILE_ROWS, MAX_TILE_COLS, TILE_ALIGN, STRIDE_ALIGN],
            self.page_elements,
            self.dtype,
            [[site.name, site.layer, site.in_width, site.out_width] for site in self.sites],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def base_fingerprint(self) -> str:
        """Of the base weights: what was found equal to them is so only under one fingerprint."""
        facts = [[base.name, base.shape, base.hashes] for base in self.base_weights]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SiteRank:
    """One site an adapter changes."""

    site: int  # index into ImageSpec.sites
    rank: int
    scale: float  # alpha/r or alpha/sqrt(r); applied in fp32, never folded into the weights


@dataclass(frozen=True, slots=True)
class SiteTiles:
    """Where one site's tiles lie. Offsets count elements from the start of the image."""

    site: int
    rank: int
    scale: float
    # Row-major over (rank block, column block): ceil(rank/16) x ceil(in_width/tile_cols).
    a_offsets: tuple[int, ...]
    # The same over B transposed, [rank, out_width].
    b_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageLayout:
    num_pages: int
    tile_cols: int
    sites: tuple[SiteTiles, ...]  # by site index
    # landed_pages[l]: pages [0, landed_pages[l]) hold everything of layers 0..l.
    landed_pages: tuple[int, ...]
    used_elements: int  # without padding: sum of rank * (in + out)


@dataclass(frozen=True, slots=True)
class Tile:
    """One block of a matrix of `num_rank_rows` x `width`, in the order of the offsets."""

    row: int  # first rank row
    col: int  # first column
    num_rows: int
    num_cols: int
    row_stride: int  # elements from one row to the next

    @property
    def num_elements(self) -> int:
        """Room it takes, the padding of its rows included."""
        return self.num_rows * self.row_stride


def layer_groups(layout: ImageLayout) -> Iterator[tuple[int, int]]:
    """(last layer, landed pages) of each group of layers that lands together."""
    landed = layout.landed_pages
    for layer, count in enumerate(landed):
        if layer + 1 == len(landed) or landed[layer + 1] != count:
            yield layer, count


def tile_cols(page_elements: int) -> int:
    """Columns of a full tile, so that 16 rows of it fit into a page.

    Raises:
        ValueError: pages too small for a tile, or that cannot keep tiles aligned.
    """
    smallest = TILE_ROWS * STRIDE_ALIGN
    if page_elements < smallest or page_elements % TILE_ALIGN:
        raise ValueError(
            f"page_elements is {page_elements}: a page must have at least {smallest} elements "
            f"and a multiple of {TILE_ALIGN}"
        )
    return min(MAX_TILE_COLS, _down(page_elements // TILE_ROWS, STRIDE_ALIGN))


def matrix_tiles(rank: int, width: int, cols: int) -> Iterator[Tile]:
    """The tiles of one [rank, width] matrix, row-major over (rank block, column block)."""
    for row in range(0, rank, TILE_ROWS):
        for col in range(0, width, cols):
            num_cols = min(cols, width - col)
            yield Tile(
                row=row,
                col=col,
                num_rows=min(TILE_ROWS, rank - row),
                num_cols=num_cols,
                row_stride=_up(num_cols, STRIDE_ALIGN),
            )


def plan_image(spec: ImageSpec, ranks: Sequence[SiteRank]) -> ImageLayout:
    """Lay tiles out site by site (so layer by layer), A before B, each in the first of the last
    `OPEN_PAGES` pages that has room for it.

    First-fit over a few pages, not over all: a layer's tiles stay together, so that a load can
    land layer by layer, and small tiles still fill what larger ones left of a page (next-fit
    wasted 3.5 % on Qwen2.5-0.5B where this wastes 0.4 %).
    """
    cols = tile_cols(spec.page_elements)
    cursor = _Cursor(spec.page_elements)
    num_layers = 1 + max((site.layer for site in spec.sites), default=-1)
    landed = [0] * num_layers
    placed: list[SiteTiles] = []
    used_elements = 0
    for entry in sorted(ranks, key=lambda entry: entry.site):
        site = spec.sites[entry.site]
        a_offsets = tuple(cursor.place(t) for t in matrix_tiles(entry.rank, site.in_width, cols))
        b_offsets = tuple(cursor.place(t) for t in matrix_tiles(entry.rank, site.out_width, cols))
        placed.append(SiteTiles(entry.site, entry.rank, entry.scale, a_offsets, b_offsets))
        landed[site.layer] = cursor.num_pages
        used_elements += entry.rank * (site.in_width + site.out_width)
    # A layer without tiles has landed when the layers before it have.
    for layer in range(1, num_layers):
        landed[layer] = max(landed[layer], landed[layer - 1])
    return ImageLayout(cursor.num_pages, cols, tuple(placed), tuple(landed), used_elements)


class _Cursor:
    """Where the next tile goes."""

    def __init__(self, page_elements: int) -> None:
        self._page_elements = page_elements
        self._ends: list[int] = []  # elements taken of each open page; the last one is the newest
        self.num_pages = 0

    def place(self, tile: Tile) -> int:
        first_open = self.num_pages - len(self._ends)
        for idx, end in enumerate(self._ends):
            within = _up(end, TILE_ALIGN)
            if within + tile.num_elements <= self._page_elements:
                self._ends[idx] = within + tile.num_elements
                return (first_open + idx) * self._page_elements + within
        if len(self._ends) == OPEN_PAGES:
            del self._ends[0]
        self._ends.append(tile.num_elements)
        self.num_pages += 1
        return (self.num_pages - 1) * self._page_elements


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _down(value: int, step: int) -> int:
    return value // step * step
