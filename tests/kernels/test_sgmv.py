"""The Triton kernels of add_lora, interpreted: what only they can do wrong."""

import pytest
import torch

from lorry.kernels.call import KernelCall
from lorry.kernels.lora import (
    FactorTiles,
    LoraRoom,
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    add_lora,
    choose_backend,
    num_tiles,
)
from lorry.kernels.lora.configs import MAX_SPLIT_UNITS
from lorry.kernels.lora.triton_backend import TritonBackend
from lorry.tests.kernels.tolerances import RELATIVE_ERROR, relative_error
from lorry.tests.kernels_builders import (
    INTERPRETED,
    LoraPool,
    assert_close,
    cut,
    make_backend,
    make_triton,
    run_lora,
)

pytestmark = INTERPRETED

RANKS = [1, 4, 5, 8, 16, 64, 100, 256]


def poisoned(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """`rows` in a tensor of `num_rows`, the others NaN."""
    out = torch.full((num_rows, rows.shape[1]), torch.nan, dtype=rows.dtype)
    out[: len(rows)] = rows
    return out


@pytest.mark.parametrize(
    ("lens", "slots", "dtype"),
    [
        ([1] * 8, [*range(8)], torch.float32),
        ([2, 0, 17, 3], [6, 1, 7, -1], torch.float32),
        ([1, 3, 0, 17, 18, 3], [4, 2, 1, 6, 3, -1], torch.float16),
    ],
    ids=["T8-all-different-fp32", "T22-long-and-empty-fp32", "T42-fp16"],
)
def test_mixed_ranks_up_to_256(lens: list[int], slots: list[int], dtype: torch.dtype) -> None:
    """Any rank in one batch, in both classes of rows; widths, tiles and pages of odd sizes, NaN
    in free pages, in the padding of tiles, and in rows behind the step."""
    pool = LoraPool(RANKS, in_width=56, out_width=36, tile_cols=48, dtype=dtype)
    segments = cut(lens, slots)
    num_rows = segments[-1].end
    hidden, base = pool.random(num_rows, 56), pool.random(num_rows, 36)
    out = run_lora(
        pool,
        segments,
        poisoned(hidden, num_rows + 3),
        poisoned(base, num_rows + 3),
        make_backend("triton", pool),
    )
    expected = pool.dense_output(hidden, base, segments)
    assert relative_error(out[:num_rows], expected) <= RELATIVE_ERROR[dtype]
    assert out[num_rows:].isnan().all()
    assert (out[:num_rows] - base).abs().max() > 0.1


def test_no_other_row_reaches_a_result() -> None:
    """Rows of neighbours, of the base and of empty places may hold anything: a finite row's
    result is finite, and bit for bit what it is alone."""
    pool = LoraPool([5, 16, 24], in_width=56, out_width=36, tile_cols=48)
    backend = make_backend("triton", pool)
    hidden, base = pool.random(9, 56), pool.random(9, 36)
    segments = [Segment(0, 1, 0), Segment(1, 4, 1), Segment(6, 9, 2)]
    alone = [run_lora(pool, [s], hidden, base, backend)[s.start : s.end] for s in segments]
    for whole in ([0, 2], [1]):
        bad_hidden, bad_base = torch.full_like(hidden, torch.nan), torch.full_like(base, torch.nan)
        for i in whole:
            rows = slice(segments[i].start, segments[i].end)
            bad_hidden[rows], bad_base[rows] = hidden[rows], base[rows]
        out = run_lora(pool, segments, bad_hidden, bad_base, backend)
        for i in whole:
            assert torch.equal(out[segments[i].start : segments[i].end], alone[i])


def test_a_row_of_a_short_segment_is_bitwise_the_same_in_any_batch() -> None:
    """What decides the order of a sum is the site and the rank, never who shares the batch."""
    pool = LoraPool([5, 16, 24, 40], in_width=100, out_width=40)
    backend = make_backend("triton", pool)
    hidden, base = pool.random(25, 100), pool.random(25, 40)
    segments = cut([1, 3, 20, 1], [3, 0, 1, 2])
    together = run_lora(pool, segments, hidden, base, backend)
    for segment in segments:
        rows = slice(segment.start, segment.end)
        alone = [Segment(0, segment.end - segment.start, segment.slot)]
        assert torch.equal(run_lora(pool, alone, hidden[rows], base[rows], backend), together[rows])


@pytest.mark.parametrize("rank", [16, 40])
def test_short_and_long_segments_agree(rank: int) -> None:
    """A row's sums are made in the same order whether its segment is short or long: here they
    differ by what a product of another height rounds otherwise, a few units of fp32."""
    pool = LoraPool([rank], in_width=100, out_width=40)
    backend = make_backend("triton", pool)
    hidden, base = pool.random(20, 100), pool.random(20, 40)
    long = run_lora(pool, [Segment(0, 20, 0)], hidden, base, backend)
    short = run_lora(pool, cut([10, 10], [0, 0]), hidden, base, backend)
    torch.testing.assert_close(long, short, rtol=1e-6, atol=2e-6)


def three_sites(*, in_one: bool) -> tuple[LoraPool, tuple[torch.Tensor, ...]]:
    """A pool whose sites 0, 1, 2 share an input, and an output for each."""
    pool = LoraPool([8, 24, 5], in_width=56, out_width=40, tile_cols=32, num_sites=3)
    tiles = [pool.table.factors(slot)[0] for slot in range(3)]
    # Ranks differ from site to site, and adapters lack some.
    pool.table.attach(0, {0: tiles[0], 1: tiles[1], 2: tiles[2]})
    pool.table.attach(1, {1: tiles[2]})
    pool.table.attach(2, {0: tiles[1], 2: tiles[0]})
    if in_one:
        return pool, pool.random(7, 3 * 40 + 8).split([40, 40, 40, 8], dim=1)[:3]
    return pool, tuple(pool.random(7, 40) for _ in range(3))


WHICH = {0: {0: 0, 2: 1}, 1: {0: 1, 1: 2}, 2: {0: 2, 2: 0}}  # site -> slot -> its dense factors


def expected(
    pool: LoraPool, site: int, hidden: torch.Tensor, base: torch.Tensor, segments: list[Segment]
) -> torch.Tensor:
    found = [
        Segment(s.start, s.end, WHICH[site][s.slot]) for s in segments if s.slot in WHICH[site]
    ]
    return pool.dense_output(hidden, base, found)


@pytest.mark.parametrize("in_one", [True, False], ids=["columns-of-one", "apart"])
def test_sites_of_one_input_are_one_shrink(in_one: bool) -> None:
    """q, k and v cost one launch of shrink, and one of expand where they lie in one buffer."""
    pool, outs = three_sites(in_one=in_one)
    backend = make_triton(pool)
    segments = cut([2, 1, 3, 1], [0, 1, 2, -1])
    hidden, work = pool.random(7, 56), LoraWork(pool.table, segments)
    bases = [out.clone() for out in outs]
    backend.prepare([work])
    calls = list(backend.calls(hidden, pool.pool_PE, work, sites=(0, 1, 2), outs_TO=outs))
    assert len(calls) == (2 if in_one else 4)
    for call in calls:
        call.run()
    for site, (base, out) in enumerate(zip(bases, outs, strict=True)):
        assert_close(out, expected(pool, site, hidden, base, segments))


@pytest.mark.parametrize("num_rows", [1, 64, 256])
def test_a_layer_is_eight_launches(num_rows: int) -> None:
    """Whatever the step's rows, partial sums of all sites that share an input have room: a shrink
    and an expand for each of a layer's four inputs, fixed or not. Nothing is run."""
    widths = [*[(4096, w) for w in (4096, 1024, 1024, 4096, 14336, 14336)], (14336, 4096)]
    table = LoraTable([SiteShape(*w) for w in widths], tile_cols=512, pool_elements=1 << 30)
    starts = torch.zeros(num_tiles(16, 14336, 512), dtype=torch.int64)
    tiles = {
        site: FactorTiles(16, 1.0, starts[: -(-in_width // 512)], starts[: -(-out_width // 512)])
        for site, (in_width, out_width) in enumerate(widths)
    }
    table.attach(0, tiles)
    room = LoraRoom((num_rows,), num_rows, 256, torch.device("cpu"))
    backend = choose_backend("triton", table=table, room=room)
    assert isinstance(backend, TritonBackend)
    pool_PE = torch.zeros(0, dtype=torch.bfloat16)
    work = LoraWork(table, [Segment(i, i + 1, 0) for i in range(num_rows)])
    for fixed in (True, False):
        backend.prepare([work], fixed=fixed)
        calls: list[KernelCall] = []
        for sites in ((0, 1, 2), (3,), (4, 5), (6,)):
            hidden = torch.empty(num_rows, widths[sites[0]][0], dtype=torch.bfloat16)
            outs = torch.empty(num_rows, sum(widths[s][1] for s in sites), dtype=torch.bfloat16)
            parts = outs.split([widths[s][1] for s in sites], dim=1)
            calls += backend.calls(hidden, pool_PE, work, sites=sites, outs_TO=parts)
        assert len(calls) == 8
        for call in calls:
            assert partial_reach(call, num_rows) <= len(backend._partial)  # pyright: ignore[reportPrivateUsage]


def partial_reach(call: KernelCall, num_rows: int) -> int:
    """Sums that a shrink of so many rows of the largest rank writes, one for each split."""
    if "NUM_SITES" not in call.options:
        return 0
    col_tiles = -(-call.options["IN"] // call.options["TILE_COLS"])
    splits = -(-col_tiles // call.options["SPLIT_TILES"])
    return splits * call.options["NUM_SITES"] * num_rows * 256


def test_splits_apart_or_in_one_program_are_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a split has a program of its own follows the batch: no bit of a row may follow it."""
    pool, outs = three_sites(in_one=True)
    segments = cut([1, 6], [0, 2])
    hidden, work = pool.random(7, 56), LoraWork(pool.table, segments)
    bases = [out.clone() for out in outs]
    found: list[list[torch.Tensor]] = []
    for most in (MAX_SPLIT_UNITS, 0):
        monkeypatch.setattr("lorry.kernels.lora.lists.MAX_SPLIT_UNITS", most)
        backend = make_triton(pool)
        for out, base in zip(outs, bases, strict=True):
            out.copy_(base)
        backend.prepare([work])
        add_lora(hidden, pool.pool_PE, work, sites=(0, 1, 2), outs_TO=outs, backend=backend)
        found.append([out.clone() for out in outs])
    for site, (split, whole) in enumerate(zip(*found, strict=True)):
        assert torch.equal(split, whole)
        assert_close(split, expected(pool, site, hidden, bases[site], segments))


def test_fixed_launches_serve_any_later_step() -> None:
    """A CUDA graph replays the launches of one step with the lists of another: other adapters,
    ranks, rows, none at all. Here the same calls are run again."""
    pool = LoraPool([4, 40, 16], in_width=56, out_width=36, tile_cols=48)
    backend = make_triton(pool, max_rows=20, max_segments=4)
    hidden, base = pool.random(20, 56), pool.random(20, 36)
    out = base.clone()
    steps = [cut([1], [0]), cut([18, 1, 1], [2, 1, 0]), cut([3, 2], [-1, 1]), []]
    first = LoraWork(pool.table, steps[0])
    backend.prepare([first], fixed=True)
    calls = list(backend.calls(hidden, pool.pool_PE, first, sites=(0,), outs_TO=(out,)))
    for segments in steps:
        out.copy_(base)
        work = LoraWork(pool.table, segments) if segments else None
        backend.prepare([work], fixed=True)
        for call in calls:
            call.run()
        assert_close(out, pool.dense_output(hidden, base, segments))
        assert torch.equal(out, base) == (not segments)


def test_body_and_head_have_lists_of_their_own() -> None:
    """The head sees sampled rows only: its work must not read the body's lists."""
    pool = LoraPool([4, 24], in_width=56, out_width=36, tile_cols=48)
    backend = make_backend("triton", pool)
    works = [LoraWork(pool.table, cut([18, 2], [0, 1])), LoraWork(pool.table, cut([1, 1], [0, 1]))]
    backend.prepare(works)
    for work in reversed(works):
        hidden, base = pool.random(work.end_row, 56), pool.random(work.end_row, 36)
        out = base.clone()
        add_lora(hidden, pool.pool_PE, work, sites=(0,), outs_TO=(out,), backend=backend)
        assert_close(out, pool.dense_output(hidden, base, list(work.segments)))
    with pytest.raises(ValueError, match="not the last one that was prepared"):
        add_lora(
            hidden,
            pool.pool_PE,
            LoraWork(pool.table, works[0].segments),
            sites=(0,),
            outs_TO=(base,),
            backend=backend,
        )


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_overflow_stays_an_overflow_and_in_its_row() -> None:
    """Sums past fp16's range are exact in fp32, and an infinite row says so, alone."""
    pool = LoraPool([24, 5], in_width=56, out_width=36, tile_cols=48, dtype=torch.float16)
    hidden, base = pool.random(3, 56), pool.random(3, 36)
    hidden[0] *= 2e4  # what A gives of it does not fit fp16, the scaled result does not either
    hidden[1, 3] = torch.inf
    segments = cut([2, 1], [0, 1])
    out = run_lora(pool, segments, hidden, base, make_backend("triton", pool))
    exact = pool.dense_output(hidden, base, segments)
    fits = exact[0].abs() < 6e4
    assert_close(out[0, fits] / 2e4, exact[0, fits] / 2e4)
    assert not out[1].isfinite().any()
    assert_close(out[2:], exact[2:])


def records_held(backend: TritonBackend) -> int:
    return len(backend._arena._held)  # pyright: ignore[reportPrivateUsage]


def test_a_full_arena_is_laid_out_anew() -> None:
    """Adapters come and go for ever: records of those who left must make room, and no record may
    be taken for another's."""
    pool = LoraPool([16] * 9, in_width=56, out_width=36, tile_cols=48, num_sites=1)
    backend = make_triton(pool, max_rows=4, max_segments=2, max_rank=16)
    hidden, base = pool.random(2, 56), pool.random(2, 36)
    held = 0
    for slots in ([0, 1], [2, 3], [4, 5], [5, 6], [7, 8], [0, 8]):
        segments = cut([1, 1], slots)
        out = run_lora(pool, segments, hidden, base, backend)
        assert_close(out, pool.dense_output(hidden, base, segments))
        was, held = held, records_held(backend)
        if held < was:
            break
    else:
        pytest.fail("the arena was never full")


def test_limits_are_refused_by_name() -> None:
    """More than there is room for would be written behind a buffer's end."""
    pool = LoraPool([16, 24], in_width=56, out_width=36, tile_cols=48)
    backend = make_triton(pool, max_rows=4, max_segments=2, max_rank=16)
    with pytest.raises(ValueError, match=r"rank is 24; room is for 16"):
        backend.prepare([LoraWork(pool.table, [Segment(0, 1, 1)])])
    with pytest.raises(ValueError, match=r"end at row 5; room is for 4"):
        backend.prepare([LoraWork(pool.table, [Segment(0, 5, 0)])])
    with pytest.raises(ValueError, match=r"3 segments; room is for 2"):
        backend.prepare([LoraWork(pool.table, cut([1, 1, 1], [0, 0, 0]))])
    with pytest.raises(ValueError, match=r"3 works; room is for 2"):
        backend.prepare([None] * 3)
    tiles = pool.table.factors(0)[0]
    astray = FactorTiles(16, 1.0, tiles.a_offsets + 16, tiles.b_offsets)
    pool.table.attach(0, {0: astray})
    with pytest.raises(ValueError, match="multiples of 64 elements"):
        backend.prepare([LoraWork(pool.table, [Segment(0, 1, 0)])])
