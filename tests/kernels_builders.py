"""For tests of the kernels: tolerances, a pool of adapters, the work of an attention step."""

from __future__ import annotations

import pytest
import torch

from lorry.kernels.attention import AttentionWork
from lorry.kernels.lora import (
    TILE_ROWS,
    FactorTiles,
    LoraBackend,
    LoraRoom,
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    Workspace,
    add_lora,
    choose_backend,
    num_tiles,
    row_stride,
)
from lorry.kernels.lora.triton_backend import TritonBackend
from lorry.kernels.lora.work import tiles_of

# Tensors of these tests lie on a CPU; where there is a GPU, kernels are compiled for it.
INTERPRETED = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled on a GPU machine"),
]

GARBAGE = 0x5A5A5A5A

# (relative, absolute) for values of about one. Nothing loosens them.
TOLERANCES = {
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}


def cut(lens: list[int], slots: list[int]) -> list[Segment]:
    """Segments of these lengths, one behind the other."""
    ends = [sum(lens[: i + 1]) for i in range(len(lens))]
    return [Segment(e - n, e, s) for e, n, s in zip(ends, lens, slots, strict=True)]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    relative, absolute = TOLERANCES[ours.dtype]
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=relative, atol=absolute)


class LoraPool:
    """A pool with adapters at one site, tiles placed at random aligned places of their own."""

    def __init__(
        self,
        ranks: list[int],
        *,
        in_width: int = 128,
        out_width: int = 96,
        dtype: torch.dtype = torch.float32,
        tile_cols: int = 64,
        seed: int = 0,
        num_sites: int = 2,
        scale: float | None = None,  # of every slot; else 0.5 + slot
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.in_width, self.out_width, self.dtype = in_width, out_width, dtype
        page_elements = TILE_ROWS * row_stride(tile_cols)
        num_pages = sum(
            num_tiles(rank, in_width, tile_cols) + num_tiles(rank, out_width, tile_cols)
            for rank in ranks
        )
        # One tile a page, pages in random order, NaN wherever no tile lies.
        self.pool_PE = torch.full((num_pages + 1, page_elements), torch.nan, dtype=dtype)
        self._free = torch.randperm(num_pages, generator=self.generator).tolist()
        self.table = LoraTable(
            [SiteShape(in_width, out_width)] * num_sites,
            tile_cols=tile_cols,
            pool_elements=self.pool_PE.numel(),
        )
        self.dense: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}
        self.tiles: dict[int, FactorTiles] = {}
        for slot, rank in enumerate(ranks):
            a_RI = self.random(rank, in_width) / in_width**0.5
            b_RO = self.random(rank, out_width) / rank**0.5
            of_slot = 0.5 + slot if scale is None else scale
            self.dense[slot] = (a_RI, b_RO, of_slot)
            tiles = FactorTiles(rank, of_slot, self._place(a_RI), self._place(b_RO))
            self.tiles[slot] = tiles
            self.table.attach(slot, {0: tiles})

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def _place(self, factor: torch.Tensor) -> torch.Tensor:
        rank, width = factor.shape
        cols, page_elements = self.table.tile_cols, self.pool_PE.shape[1]
        count = num_tiles(rank, width, cols)
        offsets = torch.tensor([self._free.pop() * page_elements for _ in range(count)])
        flat = self.pool_PE.view(-1)
        for tile in tiles_of(offsets, rank, width, cols):
            home = torch.as_strided(
                flat, (tile.num_rows, tile.num_cols), (tile.stride, 1), tile.offset
            )
            rows = slice(tile.row, tile.row + tile.num_rows)
            home.copy_(factor[rows, tile.col : tile.col + tile.num_cols])
        return offsets

    def dense_output(
        self, hidden: torch.Tensor, base: torch.Tensor, segments: list[Segment]
    ) -> torch.Tensor:
        """What PEFT computes: base + (x A^T) B^T * scale, on whole matrices."""
        out = base.double()
        for segment in segments:
            if segment.slot >= 0:
                a_RI, b_RO, scale = self.dense[segment.slot]
                rows = slice(segment.start, segment.end)
                out[rows] += hidden[rows].double() @ a_RI.double().T @ b_RO.double() * scale
        return out


def make_backend(name: str, pool: LoraPool, *, num_rows: int = 256) -> LoraBackend:
    """`cpu` with a workspace for `num_rows` rank rows where it may have one; `triton` with room
    for small steps."""
    if name == "triton":
        return make_triton(pool, max_rows=128, max_segments=16, max_rank=256)
    if name != "cpu" or pool.dtype == torch.float16:
        return choose_backend(name)
    sites = dict(enumerate(pool.table.sites))
    return choose_backend(name, workspace=Workspace(sites, num_rows=num_rows, dtype=pool.dtype))


def make_triton(
    pool: LoraPool, *, max_rows: int = 32, max_segments: int = 8, max_rank: int = 64
) -> TritonBackend:
    """With room for so many rows in the body, and 32 at most in the head."""
    room = LoraRoom((max_rows, min(32, max_rows)), max_segments, max_rank, pool.pool_PE.device)
    backend = choose_backend("triton", table=pool.table, room=room)
    assert isinstance(backend, TritonBackend)
    return poison(backend)


def poison(backend: TritonBackend) -> TritonBackend:
    """All memory of its own as a GPU may hand it out: what is read must have been written."""
    backend._partial.fill_(torch.nan)  # pyright: ignore[reportPrivateUsage]
    backend._lists.numbers.fill_(GARBAGE)  # pyright: ignore[reportPrivateUsage]
    backend._arena.numbers.fill_(GARBAGE)  # pyright: ignore[reportPrivateUsage]
    return backend


def run_lora(
    pool: LoraPool,
    segments: list[Segment],
    hidden_TI: torch.Tensor,
    base_TO: torch.Tensor,
    backend: LoraBackend,
) -> torch.Tensor:
    """base + LoRA at site 0."""
    work, out_TO = LoraWork(pool.table, segments), base_TO.clone()
    backend.prepare([work])
    add_lora(hidden_TI, pool.pool_PE, work, sites=(0,), outs_TO=(out_TO,), backend=backend)
    return out_TO


def make_work(
    starts: list[int], lens: list[int], tokens_per_page: int, *, seed: int = 0
) -> tuple[AttentionWork, int]:
    """Requests over shuffled pages of their own; returns the work and the number of pages."""
    counts = [-(-(start + n) // tokens_per_page) for start, n in zip(starts, lens, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    free = torch.randperm(sum(counts), generator=generator).tolist()
    pages = [[free.pop() for _ in range(count)] for count in counts]
    table = torch.tensor([row + [row[-1]] * (max(counts) - len(row)) for row in pages])
    positions = [p for s, n in zip(starts, lens, strict=True) for p in range(s, s + n)]
    owners = [i for i, n in enumerate(lens) for _ in range(n)]
    page_T = torch.tensor(
        [pages[i][p // tokens_per_page] for i, p in zip(owners, positions, strict=True)]
    )
    position_T = torch.tensor(positions)
    offset_T = position_T % tokens_per_page
    work = AttentionWork(
        query_lens=tuple(lens),
        context_lens=tuple(s + n for s, n in zip(starts, lens, strict=True)),
        block_table_BM=table,
        page_T=page_T,
        offset_T=offset_T,
        position_T=position_T,
        fresh_pages=page_T[offset_T == 0],
    )
    return work, sum(counts)
