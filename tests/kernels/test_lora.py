"""add_lora: every backend against dense mathematics."""

import pytest
import torch

from lorry.kernels.lora import (
    FactorTiles,
    LoraRoom,
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    Workspace,
    add_lora,
    choose_backend,
)
from lorry.tests.kernels_builders import (
    INTERPRETED,
    LoraPool,
    assert_close,
    cut,
    make_backend,
    run_lora,
)

RANKS = [1, 4, 5, 8, 12, 16, 24, 64]
TRITON = pytest.param("triton", marks=INTERPRETED)
PLAIN = ["reference", "tiles", "dense", "cpu"]
BACKENDS = [*PLAIN, TRITON]


CASES = {
    "T1-one-token": ([1], [3]),
    "T19-one-for-all": ([19], [7]),
    "T8-all-different": ([1] * 8, list(range(8))),
    "T63-mixed-ranks": ([7, 1, 15, 8, 9, 3, 16, 4], [5, 0, 7, 1, 6, 2, 4, 3]),
    "T12-base-rows": ([4, 3, 5], [-1, 2, -1]),
    "T9-empty-segment": ([4, 0, 5], [6, 1, 2]),
}


@pytest.mark.parametrize(
    ("backend", "widths"),
    [(name, widths) for name in PLAIN for widths in [(128, 96), (100, 1536), (1536, 36)]]
    # The interpreter takes milliseconds for a block of columns.
    + [pytest.param("triton", widths, marks=INTERPRETED) for widths in [(100, 36)]],
    ids=str,
)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_mathematics(case: str, backend: str, widths: tuple[int, int]) -> None:
    """Ranks, widths, tiles and segments of any kind give base + (x A^T) B^T * scale."""
    pool = LoraPool(RANKS, in_width=widths[0], out_width=widths[1])
    segments = cut(*CASES[case])
    hidden, base = (
        pool.random(segments[-1].end, widths[0]),
        pool.random(segments[-1].end, widths[1]),
    )
    out = run_lora(pool, segments, hidden, base, make_backend(backend, pool))
    assert_close(out, pool.dense_output(hidden, base, segments))
    if any(segment.slot >= 0 for segment in segments):
        assert (out - base).abs().max() > 0.1


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.bfloat16), ("tiles", torch.bfloat16), ("cpu", torch.float16)],
    ids=str,
)
def test_low_precision_rounds_once(backend: str, dtype: torch.dtype) -> None:
    """Sums are made in fp32: the result is the exact one, rounded to the model's dtype."""
    pool = LoraPool(RANKS, dtype=dtype)
    segments = cut(*CASES["T63-mixed-ranks"])
    hidden, base = pool.random(63, 128), pool.random(63, 96)
    out = run_lora(pool, segments, hidden, base, make_backend(backend, pool))
    exact = pool.dense_output(hidden, base, segments)
    # Half a unit in the last place of the result is what one rounding may cost.
    allowed = exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-6
    assert ((out.double() - exact).abs() <= allowed).all()


def test_bf16_is_no_further_away_than_peft() -> None:
    """The workspace keeps what A gives in bf16: that must cost no more than PEFT's own bf16."""
    pool = LoraPool(RANKS, dtype=torch.bfloat16)
    segments = cut(*CASES["T63-mixed-ranks"])
    hidden, base = pool.random(63, 128), pool.random(63, 96)
    ours = run_lora(pool, segments, hidden, base, make_backend("cpu", pool))
    theirs = base.clone()
    for segment in segments:
        a_RI, b_RO, scale = pool.dense[segment.slot]
        rows = slice(segment.start, segment.end)
        theirs[rows] += hidden[rows] @ a_RI.T @ b_RO * scale
    exact = pool.dense_output(hidden, base, segments)
    error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (ours, theirs))
    assert 0 < error <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_adapter_keep_every_bit(backend: str) -> None:
    """A base row in a batch full of adapters is the base's: not one bit of it may change."""
    pool = LoraPool(RANKS)
    segments = [Segment(2, 5, 1), Segment(5, 6, -1), Segment(8, 9, 7)]
    hidden, base = pool.random(12, 128), pool.random(12, 96)
    out = run_lora(pool, segments, hidden, base, make_backend(backend, pool))
    untouched = [0, 1, 5, 6, 7, 9, 10, 11]
    assert torch.equal(out[untouched], base[untouched])
    assert not torch.equal(out[[2, 8]], base[[2, 8]])


def test_a_row_alone_equals_the_same_row_in_a_mixed_batch() -> None:
    """A request's numbers must not depend on who shares the batch (anchor 27)."""
    pool = LoraPool(RANKS)
    segments, backend = cut([1] * 8, list(range(8))), make_backend("cpu", pool)
    hidden, base = pool.random(8, 128), pool.random(8, 96)
    together = run_lora(pool, segments, hidden, base, backend)
    for i in range(8):
        row = slice(i, i + 1)
        alone = run_lora(pool, [Segment(0, 1, i)], hidden[row], base[row], backend)
        assert_close(alone[0], together[i])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_slot_that_lacks_the_site_is_left_alone(name: str) -> None:
    """Adapters with a subset of modules work: the other sites are the base's (anchor 31)."""
    pool = LoraPool([8])
    work = LoraWork(pool.table, [Segment(0, 3, 0)])
    base = pool.random(3, 96)
    out, backend = base.clone(), make_backend(name, pool)
    backend.prepare([work])
    add_lora(pool.random(3, 128), pool.pool_PE, work, sites=(1,), outs_TO=(out,), backend=backend)
    assert torch.equal(out, base)


@pytest.mark.parametrize("name", BACKENDS)
def test_sites_that_share_an_input_are_added_in_one_call(name: str) -> None:
    """Siblings (q, k, v) get each its own product, also where only one adapter has them all."""
    pool = LoraPool([8, 24])
    tiles = [pool.table.factors(slot)[0] for slot in (0, 1)]
    pool.table.attach(0, {0: tiles[0], 1: tiles[1]})
    segments, backend = cut([3, 2], [0, 1]), make_backend(name, pool)
    hidden, base = pool.random(5, 128), pool.random(5, 96)
    outs = (base.clone(), base.clone())
    work = LoraWork(pool.table, segments)
    backend.prepare([work])
    add_lora(hidden, pool.pool_PE, work, sites=(0, 1), outs_TO=outs, backend=backend)
    assert_close(outs[0], pool.dense_output(hidden, base, segments))
    assert_close(outs[1], pool.dense_output(hidden, base, [Segment(0, 3, 1)]))


@pytest.mark.parametrize("name", BACKENDS)
def test_zeroed_pages_and_new_tenants_show(name: str) -> None:
    """Another adapter in a slot shows at once, and what was written into the pages of an
    attached one after `forget`: nothing is kept that pages do not hold."""
    pool = LoraPool([8, 24])
    hidden, base = pool.random(3, 128), pool.random(3, 96)
    backend = make_backend(name, pool)

    def out_of_slot_0() -> torch.Tensor:
        return run_lora(pool, [Segment(0, 3, 0)], hidden, base, backend)

    assert not torch.equal(out_of_slot_0(), base)
    # The slot is given to another adapter: what is known of the old one must not be found again.
    tiles = pool.table.factors(1)
    pool.table.detach(0)
    pool.table.attach(0, tiles)
    assert_close(out_of_slot_0(), pool.dense_output(hidden, base, [Segment(0, 3, 1)]))
    pool.pool_PE.zero_()
    backend.forget()
    assert torch.equal(out_of_slot_0(), base)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_single_row_may_have_any_stride(name: str) -> None:
    """torch leaves what it likes as the stride of an axis of one: it must not be believed."""
    pool = LoraPool([8])
    hidden, base = pool.random(1, 128), pool.random(1, 96)
    out = run_lora(
        pool,
        [Segment(0, 1, 0)],
        hidden.as_strided((1, 128), (1, 1)),
        base.as_strided((1, 96), (3, 1)),
        make_backend(name, pool),
    )
    assert_close(out, pool.dense_output(hidden, base, [Segment(0, 1, 0)]))


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_may_be_columns_of_one_buffer(name: str) -> None:
    """Merged projections give siblings as columns: neighbours' columns must not be written."""
    pool = LoraPool([8, 24])
    tiles = [pool.table.factors(slot)[0] for slot in (0, 1)]
    pool.table.attach(0, {0: tiles[0], 1: tiles[1]})
    hidden, buffer = pool.random(3, 128), pool.random(5, 96 + 4 + 96 + 4)
    base = buffer.clone()
    outs = (buffer[:3, :96], buffer[:3, 100:196])
    work, backend = LoraWork(pool.table, [Segment(0, 3, 0)]), make_backend(name, pool)
    backend.prepare([work])
    add_lora(hidden, pool.pool_PE, work, sites=(0, 1), outs_TO=outs, backend=backend)
    for i, first in enumerate((0, 100)):
        columns = slice(first, first + 96)
        dense = pool.dense_output(hidden, base[:3, columns], [Segment(0, 3, i)])
        assert_close(buffer[:3, columns], dense)
        buffer[:3, columns] = base[:3, columns]
    assert torch.equal(buffer, base)


def test_adjoining_tiles_are_read_as_one() -> None:
    """Rank blocks that follow each other are merged; the numbers must stay the same."""
    table = LoraTable([SiteShape(32, 32)], tile_cols=32, pool_elements=8 * 512)
    # A of rank 40: two adjoining blocks, then a gap; B: all three adjoin.
    tiles = FactorTiles(40, 1.5, torch.tensor([0, 512, 2048]), torch.tensor([2560, 3072, 3584]))
    table.attach(0, {0: tiles})
    workspace = Workspace({0: table.sites[0]}, num_rows=40, dtype=torch.float32)
    room = LoraRoom((5,), 1, 40, torch.device("cpu"))
    pool_PE = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    outs = []
    for name in [*PLAIN, *([] if torch.cuda.is_available() else ["triton"])]:
        work, out = LoraWork(table, [Segment(0, 5, 0)]), torch.zeros(5, 32)
        backend = choose_backend(name, workspace=workspace, table=table, room=room)
        backend.prepare([work])
        add_lora(hidden, pool_PE, work, sites=(0,), outs_TO=(out,), backend=backend)
        outs.append(out)
    for out in outs[1:]:
        torch.testing.assert_close(outs[0], out, rtol=1e-5, atol=1e-3)


def test_wrong_arguments_are_refused_by_name() -> None:
    """A wrong stride, width or dtype would be wrong numbers without a word."""
    pool = LoraPool([8])
    work = LoraWork(pool.table, [Segment(0, 3, 0)])
    good, backend = pool.random(3, 128), make_backend("cpu", pool)

    def add(hidden: torch.Tensor, out: torch.Tensor) -> None:
        add_lora(hidden, pool.pool_PE, work, sites=(0,), outs_TO=(out,), backend=backend)

    with pytest.raises(ValueError, match=r"hidden_TI .* contiguous"):
        add(pool.random(128, 3).T, pool.random(3, 96))
    with pytest.raises(ValueError, match=r"hidden_TI .* width 128"):
        add(pool.random(3, 127), pool.random(3, 96))
    with pytest.raises(ValueError, match="out_TO has 2 rows"):
        add(good, pool.random(2, 96))
    with pytest.raises(ValueError, match=r"out_TO .* width 96"):
        add(good, pool.random(3, 95))
    with pytest.raises(ValueError, match="must agree"):
        add(good.double(), pool.random(3, 96))
    with pytest.raises(ValueError, match="must be cpu, dense, tiles, triton or reference"):
        choose_backend("gpu")


def test_a_table_refuses_tiles_that_cannot_be() -> None:
    """A tile outside the pool, or one too few, would read somebody else's pages."""
    table = LoraTable([SiteShape(32, 32)] * 2, tile_cols=32, pool_elements=1024)
    good = torch.tensor([512])
    whole = FactorTiles(16, 1.0, torch.tensor([0]), good)

    def attach(rank: int, a: list[int], b: list[int], site: int = 1) -> None:
        tiles = FactorTiles(rank, 1.0, torch.tensor(a).long(), torch.tensor(b).long())
        table.attach(0, {0: whole, site: tiles})

    with pytest.raises(ValueError, match=r"site 1: a tile of B .* ends at element 1536"):
        attach(16, [0], [1024])
    with pytest.raises(ValueError, match="a tile of A from element -1 "):
        attach(16, [-1], [0])
    with pytest.raises(ValueError, match="A of rank 17 has 1 tiles; 2 are needed"):
        attach(17, [0], [512])
    with pytest.raises(ValueError, match="rank is 0"):
        attach(0, [], [])
    with pytest.raises(ValueError, match="there are 2"):
        attach(16, [0], [512], site=2)
    with pytest.raises(ValueError, match="slot 0 holds no adapter"):
        LoraWork(table, [Segment(0, 1, 0)])
    # The last row of a tile ends where its columns do: it may touch the pool's end.
    attach(16, [0], [512])
    with pytest.raises(ValueError, match="overlaps"):
        LoraWork(table, [Segment(0, 2, -1), Segment(1, 3, -1)])
