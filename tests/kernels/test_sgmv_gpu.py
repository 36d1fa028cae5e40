"""The LoRA kernels as a GPU runs them, against fp32 mathematics over the same rounded numbers."""

import pytest
import torch

from lorry.kernels.lora import (
    LoraRoom,
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    choose_backend,
)
from lorry.kernels.lora.triton_backend import TritonBackend
from lorry.tests.kernels.tolerances import RELATIVE_ERROR, relative_error
from lorry.tests.kernels_builders import LoraPool, cut, poison

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPES = {
    "llama-8b-q": (4096, 4096),
    "llama-8b-k": (4096, 1024),
    "llama-8b-up": (4096, 14336),
    "llama-8b-down": (14336, 4096),
    "qwen-0.5b-down": (4864, 896),
    "odd": (895, 895),
}
SCALE = 8.0  # of every adapter: what LoRA adds is most of a result
STEPS = {
    "decode-64-distinct": ([1] * 64, [*range(64)]),
    "decode-one-for-all": ([256], [40]),
    "prefill": ([300, 700, 5, 19, 1000], [63, 3, 7, 20, -1]),
}


def pool_on_gpu(widths: tuple[int, int], dtype: torch.dtype) -> LoraPool:
    """64 adapters whose ranks run from 1 to 64, and one of 256."""
    ranks = [*range(1, 64), 256]
    pool = LoraPool(
        ranks, in_width=widths[0], out_width=widths[1], dtype=dtype, tile_cols=512, scale=8.0
    )
    pool.pool_PE = pool.pool_PE.cuda()
    return pool


def backend_of(pool: LoraPool) -> TritonBackend:
    room = LoraRoom((2048, 256), 256, 256, pool.pool_PE.device)
    backend = choose_backend("triton", table=pool.table, room=room)
    assert isinstance(backend, TritonBackend)
    return poison(backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_fp32_mathematics(shape: str, dtype: torch.dtype) -> None:
    """64 adapters of as many ranks in one step, in both classes of rows, eager and fixed, come
    as near as the dtype allows; other rows keep every bit."""
    in_width, out_width = SHAPES[shape]
    pool = pool_on_gpu((in_width, out_width), dtype)
    backend = backend_of(pool)
    for lens, slots in STEPS.values():
        segments = cut(lens, slots)
        num_rows = segments[-1].end
        hidden, base = pool.random(num_rows, in_width), pool.random(num_rows, out_width)
        expected = pool.dense_output(hidden, base, segments)
        for fixed in (False, True):
            work, out = LoraWork(pool.table, segments), base.cuda()
            backend.prepare([work], fixed=fixed)
            backend.add(hidden.cuda(), pool.pool_PE, work, sites=(0,), outs_TO=(out,))
            ours = out.cpu()
            for segment in segments:
                rows = slice(segment.start, segment.end)
                if segment.slot < 0:
                    assert torch.equal(ours[rows], base[rows])
                else:
                    found = relative_error(ours[rows], expected[rows])
                    assert found <= RELATIVE_ERROR[dtype], (segment, fixed, found)


def test_a_graph_replays_with_other_adapters() -> None:
    """What a captured decode step launches serves any later one: nothing of the first may have
    been burnt in."""
    pool = pool_on_gpu((4096, 1024), torch.bfloat16)
    backend = backend_of(pool)
    hidden, base = pool.random(64, 4096), pool.random(64, 1024)
    hidden_gpu, base_gpu = hidden.cuda(), base.cuda()
    out = base_gpu.clone()
    steps = [cut([1], [5]), cut([1] * 64, [*range(64)]), cut([60, 4], [-1, 63]), cut([64], [9])]
    first = LoraWork(pool.table, steps[0])

    def add() -> None:
        backend.add(hidden_gpu, pool.pool_PE, first, sites=(0,), outs_TO=(out,))

    backend.prepare([first], fixed=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        add()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add()
    for segments in steps:
        out.copy_(base)
        backend.prepare([LoraWork(pool.table, segments)], fixed=True)
        graph.replay()
        assert_each(out.cpu(), pool.dense_output(hidden, base, segments), segments)
    # The same without a wait: lists, records and their staging must not be overwritten early.
    many = [cut([1] * 64, [(7 * i + j) % 64 for j in range(64)]) for i in range(10)]
    found: list[torch.Tensor] = []
    for segments in many:
        out.copy_(base_gpu)
        backend.prepare([LoraWork(pool.table, segments)], fixed=True)
        graph.replay()
        found.append(out.clone())
    for segments, ours in zip(many, found, strict=True):
        assert_each(ours.cpu(), pool.dense_output(hidden, base, segments), segments)


def assert_each(ours: torch.Tensor, expected: torch.Tensor, segments: list[Segment]) -> None:
    """Every bf16 segment by itself: an adapter left out must not hide behind a larger one."""
    for segment in segments:
        if segment.slot >= 0:
            rows = slice(segment.start, segment.end)
            error = relative_error(ours[rows], expected[rows])
            assert error <= RELATIVE_ERROR[torch.bfloat16], (segment, error)


def test_records_may_move_while_a_step_runs() -> None:
    """An arena that is full is laid out anew, several times here: the step before must have read
    its records by then."""
    pool = pool_on_gpu((4096, 1024), torch.bfloat16)
    room = LoraRoom((8,), 8, 64, pool.pool_PE.device)
    backend = choose_backend("triton", table=pool.table, room=room)
    hidden, base = pool.random(8, 4096), pool.random(8, 1024)
    hidden_gpu, base_gpu = hidden.cuda(), base.cuda()
    steps = [cut([1] * 8, [(8 * i + j) % 63 for j in range(8)]) for i in range(24)]
    found: list[torch.Tensor] = []
    for segments in steps:
        work, out = LoraWork(pool.table, segments), base_gpu.clone()
        backend.prepare([work])
        backend.add(hidden_gpu, pool.pool_PE, work, sites=(0,), outs_TO=(out,))
        found.append(out)
    for segments, ours in zip(steps, found, strict=True):
        assert_each(ours.cpu(), pool.dense_output(hidden, base, segments), segments)


def test_sites_of_one_input_in_body_and_head() -> None:
    """Three sites in one buffer, in the body and the head of one step, each with its own lists."""
    pool = pool_on_gpu((4096, 1024), torch.bfloat16)
    pool.table = LoraTable(
        [SiteShape(4096, 1024)] * 3, tile_cols=512, pool_elements=pool.pool_PE.numel()
    )
    for slot, (a_RI, _, scale) in pool.dense.items():
        tiles = pool.tiles[slot]
        assert (tiles.rank, tiles.scale) == (len(a_RI), scale)
        pool.table.attach(slot, {site: tiles for site in range(3) if (slot + site) % 4})
    backend = backend_of(pool)
    works = [
        LoraWork(pool.table, cut([1, 40, 3, 20], [3, 62, -1, 17])),
        LoraWork(pool.table, cut([1, 1, 2], [3, 62, 17])),
    ]
    backend.prepare(works)
    for work in reversed(works):
        hidden, base = pool.random(work.end_row, 4096), pool.random(work.end_row, 3 * 1024)
        out = base.cuda()
        parts = out.split(1024, dim=1)
        backend.add(hidden.cuda(), pool.pool_PE, work, sites=(0, 1, 2), outs_TO=parts)
        for site, (ours, was) in enumerate(
            zip(out.cpu().split(1024, dim=1), base.split(1024, dim=1), strict=True)
        ):
            has = [s for s in work.segments if s.slot >= 0 and (s.slot + site) % 4]
            assert_each(ours, pool.dense_output(hidden, was, has), has)


def test_a_row_alone_equals_the_same_row_in_a_batch() -> None:
    """Bit for bit, in decode: who shares the batch must not show."""
    pool = pool_on_gpu((4096, 1024), torch.bfloat16)
    backend = backend_of(pool)
    hidden, base = pool.random(64, 4096).cuda(), pool.random(64, 1024).cuda()

    def run(segments: list[Segment]) -> torch.Tensor:
        work, out = LoraWork(pool.table, segments), base.clone()
        backend.prepare([work])
        backend.add(hidden, pool.pool_PE, work, sites=(0,), outs_TO=(out,))
        return out

    together = run(cut([1] * 64, [*range(64)]))
    for row in (0, 15, 16, 63):
        assert torch.equal(run([Segment(row, row + 1, row)])[row], together[row])
