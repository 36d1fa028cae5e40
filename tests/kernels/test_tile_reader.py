"""Whole factors out of their tiles, and what the backend that reads them site by site keeps."""

from __future__ import annotations

import pytest
import torch

from lorry.kernels.lora import FactorTiles, LoraTable, LoraWork, Segment, SiteShape, num_tiles
from lorry.kernels.lora.dense import DenseBackend
from lorry.kernels.lora.reference import gather_factor
from lorry.kernels.lora.tile_reader import TileReader
from lorry.tests.kernels_builders import LoraPool, assert_close, run_lora

COLS = 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 128, 192, 448, 96, 300])
def test_a_factor_is_read_to_the_bit(width: int, dtype: torch.dtype) -> None:
    """Full tiles, narrower last ones, odd ranks and widths, wherever each tile lies: a unit taken
    from a neighbour's row would be an adapter that nobody trained."""
    generator = torch.Generator().manual_seed(width)
    pool_PE = torch.randn(64, 16 * COLS, generator=generator).to(dtype)
    reader = TileReader(pool_PE, COLS)
    for rank in (1, 3, 16, 17, 40):
        count = num_tiles(rank, width, COLS)
        # Tiles may begin inside a page.
        places = torch.randperm(62, generator=generator)[:count]
        offsets = places * 16 * COLS + 64 * torch.randint(0, 9, (count,), generator=generator)
        factor = torch.full((rank, width), torch.nan, dtype=dtype)
        reader.read(offsets, factor)
        expected = gather_factor(pool_PE, offsets, rank=rank, width=width, tile_cols=COLS)
        assert torch.equal(factor, expected.to(dtype))


@pytest.mark.parametrize("max_kept_bytes", [0, 1 << 20])
def test_what_is_kept_is_of_who_is_there(max_kept_bytes: int) -> None:
    """Kept factors of an adapter that has left a slot would answer for the next one, or fill the
    room of those who are there."""
    pool = LoraPool([8, 24, 8])
    backend = DenseBackend(max_kept_bytes=max_kept_bytes)
    hidden, base = pool.random(3, 128), pool.random(3, 96)
    segments = [Segment(0, 1, 0), Segment(1, 3, 1)]
    for _ in range(2):
        out = run_lora(pool, segments, hidden, base, backend)
        assert_close(out, pool.dense_output(hidden, base, segments))
    kept = backend.num_kept_bytes
    assert kept == (4 * (8 + 24) * (128 + 96) if max_kept_bytes else 0)
    pool.table.attach(0, pool.table.factors(2))
    pool.dense[0] = pool.dense[2]
    pool.table.detach(1)
    work, out = LoraWork(pool.table, segments[:1]), base.clone()
    backend.add(hidden, pool.pool_PE, work, sites=(0,), outs_TO=(out,))
    assert_close(out, pool.dense_output(hidden, base, segments[:1]))
    out = run_lora(pool, segments[:1], hidden, base, backend)
    assert_close(out, pool.dense_output(hidden, base, segments[:1]))
    assert backend.num_kept_bytes == (4 * 8 * (128 + 96) if max_kept_bytes else 0)


def test_sites_are_read_when_they_are_asked_for() -> None:
    """Of an adapter that is on its way only some sites are in the pool: the rest is NaN."""
    pool_PE = torch.full((4, 16 * 64), torch.nan)
    table = LoraTable([SiteShape(64, 64)] * 2, tile_cols=64, pool_elements=pool_PE.numel())
    offsets = [torch.tensor([page * 16 * 64]) for page in range(4)]
    table.attach(0, {0: FactorTiles(4, 1.0, *offsets[:2]), 1: FactorTiles(4, 1.0, *offsets[2:])})
    work, backend = LoraWork(table, [Segment(0, 2, 0)]), DenseBackend()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 64, generator=generator)
    for site in range(2):
        pool_PE[2 * site : 2 * site + 2] = torch.randn(2, 16 * 64, generator=generator)
        out = torch.zeros(2, 64)
        backend.add(hidden, pool_PE, work, sites=(site,), outs_TO=(out,))
        assert out.isfinite().all() and out.abs().max() > 0
