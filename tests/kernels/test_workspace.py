"""The workspace of the serving path: who lies in it, what is computed together, what is not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorry.kernels.lora import LoraWork, Segment, Workspace, choose_backend
from lorry.kernels.lora.cpu import CpuBackend
from lorry.tests.kernels_builders import LoraPool, assert_close, run_lora


class CountedWorkspace(Workspace):
    """Notes who is laid out, in order."""

    def __init__(self, pool: LoraPool, num_rows: int, sites: Sequence[int] = (0,)) -> None:
        shapes = {site: pool.table.sites[site] for site in sites}
        super().__init__(shapes, num_rows=num_rows, dtype=pool.pool_PE.dtype)
        self.laid_out: list[int] = []

    def _put(self, pool_PE, table, slot, place):
        self.laid_out.append(slot)
        return super()._put(pool_PE, table, slot, place)


class Bench:
    """Adapters of one rank in slots 0 to 5 over a workspace of `num_rows`."""

    def __init__(self, num_rows: int, *, ranks: Sequence[int] = (8,) * 6) -> None:
        self.pool = LoraPool(list(ranks))
        self.workspace = CountedWorkspace(self.pool, num_rows)
        self.backend = choose_backend("cpu", workspace=self.workspace)

    def step(self, slots: Sequence[int]) -> list[int]:
        """A decode step of one row each; who was laid out for it. The numbers are checked."""
        self.workspace.laid_out.clear()
        segments = [Segment(i, i + 1, slot) for i, slot in enumerate(slots)]
        hidden, base = self.pool.random(len(slots), 128), self.pool.random(len(slots), 96)
        out = run_lora(self.pool, segments, hidden, base, self.backend)
        assert_close(out, self.pool.dense_output(hidden, base, segments))
        return list(self.workspace.laid_out)


def test_an_adapter_is_laid_out_once() -> None:
    """Copying tens of megabytes at every step would cost more than the products."""
    bench = Bench(num_rows=48)
    assert bench.step([0, 3]) == [0, 3]
    assert bench.step([0, 3]) == []
    assert bench.step([0, 2, 3]) == [2]
    tiles = bench.pool.table.factors(0)
    bench.pool.table.attach(0, tiles)
    assert bench.step([0, 3]) == [0], "another adapter in the slot, and the old one answered"


def test_a_step_like_the_last_one_sees_who_is_new() -> None:
    """What is worked out for a step is kept for the next one with the same segments: a slot that
    was given to another adapter in between, in the workspace or not, must not be taken for it."""
    for num_rows in (16, 32):
        bench = Bench(num_rows)
        assert bench.step([0, 1, 2]) == [0, 1, 2][: num_rows // 8]
        for slot, other in ((0, 4), (2, 5)):
            bench.pool.table.attach(slot, bench.pool.table.factors(other))
            bench.pool.dense[slot] = bench.pool.dense[other]
            bench.step([0, 1, 2])


def test_nothing_is_left_of_who_lay_there_before() -> None:
    """Ranks differ from site to site: rows that an adapter does not use at one of them held
    another adapter's numbers."""
    pool = LoraPool([24, 8, 24])
    workspace = CountedWorkspace(pool, 24, sites=(0, 1))
    backend = CpuBackend(workspace)
    hidden, base = pool.random(3, 128), pool.random(3, 96)
    run_lora(pool, [Segment(0, 3, 0)], hidden, base, backend)
    mixed = {0: pool.table.factors(1)[0], 1: pool.table.factors(2)[0]}
    pool.table.attach(1, mixed)
    segments = [Segment(0, 3, 1)]
    out = run_lora(pool, segments, hidden, base, backend)
    assert workspace.laid_out == [0, 1]
    assert_close(out, pool.dense_output(hidden, base, segments))


def test_a_newcomer_takes_the_room_of_those_who_left() -> None:
    """A workspace that only fills up would serve every later adapter by the slow path, and one
    that begins anew at every change would copy all adapters of a step when one comes."""
    bench = Bench(num_rows=24)
    assert bench.step([0, 1, 2]) == [0, 1, 2]
    assert bench.step([1, 2, 4]) == [4]
    assert bench.step([1, 2, 4]) == []
    assert bench.step([0, 1, 2]) == [0], "its rows were another's meanwhile"


def test_adapters_of_a_step_lie_close_together() -> None:
    """Products run from the first one's rows to the last one's: rows kept for adapters that are
    not in the step would cost as much as theirs."""
    bench = Bench(num_rows=400)
    for first in range(6):
        slots = sorted((first + i) % 6 for i in range(3))
        bench.step(slots)
        places = bench.workspace.hold(
            bench.pool.pool_PE,
            bench.pool.table,
            {slot: bench.pool.table.factors(slot) for slot in slots},
        )
        assert max(place.end_row for place in places.values()) <= 24


def test_holes_between_adapters_keep_nobody_out() -> None:
    """Rows of two that left, with one between them who stays, are room for one as large as both."""
    bench = Bench(num_rows=24, ranks=[8, 8, 8, 16, 8, 8])
    assert bench.step([0, 1, 2]) == [0, 1, 2]
    assert bench.step([1, 3]) == [1, 3]


def test_what_does_not_fit_is_computed_from_tiles() -> None:
    """More adapters in use than room: right numbers, and nobody is moved back and forth."""
    bench = Bench(num_rows=24)
    assert bench.step([0, 1, 2, 3, 4]) == [0, 1, 2]
    assert bench.step([0, 1, 2, 3, 4]) == []
    assert bench.step([0, 3, 4, 5]) == [3, 4]
    bench = Bench(num_rows=0)
    assert bench.step([0, 1]) == []


def test_sites_that_nobody_changes_take_no_room() -> None:
    """Room kept at every site of the model held a third of a batch whose adapters change only
    the attention's; the rest was computed from tiles."""
    pool = LoraPool([8] * 4)
    workspace = CountedWorkspace(pool, 16, sites=(0, 1))
    backend = CpuBackend(workspace)

    def step(slots: Sequence[int]) -> list[int]:
        workspace.laid_out.clear()
        segments = [Segment(i, i + 1, slot) for i, slot in enumerate(slots)]
        hidden, base = pool.random(len(slots), 128), pool.random(len(slots), 96)
        out = run_lora(pool, segments, hidden, base, backend)
        assert_close(out, pool.dense_output(hidden, base, segments))
        return list(workspace.laid_out)

    assert step([0, 1]) == [0, 1]
    assert step([0, 1, 2, 3]) == [0, 1, 2, 3] and workspace.num_rows == 32
    tiles = pool.table.factors(3)[0]
    pool.table.attach(3, {0: tiles, 1: tiles})
    assert step([0, 3]) == [0, 3], "a site that was left out is back, and all begin anew"
    assert workspace.num_rows == 16
    assert step([0, 1, 3]) == [], "three do not fit any more, and nobody is moved for it"


def test_a_new_division_leaves_no_numbers_of_another_kind() -> None:
    """Bytes of an fp32 scale read as bf16 weights may be NaN, and zero times NaN is in every row of
    a product that runs over them."""
    pool = LoraPool([8] * 3, dtype=torch.bfloat16)
    workspace = CountedWorkspace(pool, 16, sites=(0, 1))
    workspace._block.fill_(0xFF)
    wanted = {slot: pool.table.factors(slot) for slot in range(3)}
    assert len(workspace.hold(pool.pool_PE, pool.table, wanted)) == 3
    assert all(part.isfinite().all() for part in workspace.rows(0, slice(0, workspace.num_rows)))


def test_small_segments_are_joined_and_long_ones_are_not() -> None:
    """A product per adapter would cost its own price 8 times in a decode step; a joined prefill
    would multiply thousands of rows by other people's adapters."""
    pool = LoraPool([8] * 6, in_width=768, out_width=512, dtype=torch.bfloat16)
    workspace = CountedWorkspace(pool, 48)
    backend = CpuBackend(workspace)

    def parts(lens: Sequence[int]) -> list[int]:
        ends = [sum(lens[: i + 1]) for i in range(len(lens))]
        segments = [
            Segment(end - n, end, i) for i, (end, n) in enumerate(zip(ends, lens, strict=True))
        ]
        backend._plan(workspace, pool.pool_PE, LoraWork(pool.table, segments))
        return [len(part.members) for part in backend._parts]

    assert parts([4] * 6) == [6]
    assert parts([400] * 3) == [1, 1, 1]
    assert parts([1, 1, 1, 600, 1, 1]) == [3, 1, 2]


def test_an_overflow_stays_in_its_own_row() -> None:
    """Joined rows are multiplied by everybody's A; infinity times zero would be everybody's."""
    pool = LoraPool([8, 8])
    workspace = Workspace(dict(enumerate(pool.table.sites)), num_rows=16, dtype=torch.float32)
    backend = CpuBackend(workspace)
    hidden, base = pool.random(4, 128), pool.random(4, 96)
    segments = [Segment(0, 2, 0), Segment(2, 4, 1)]
    expected = run_lora(pool, segments, hidden, base, backend)
    for tile in pool.table.factors(0)[0].a_offsets.tolist():
        page: Tensor = pool.pool_PE.view(-1)[tile : tile + 8 * 64]
        page.fill_(3e38)
    backend.forget()
    out = run_lora(pool, segments, hidden, base, backend)
    assert len(backend._parts) == 1
    assert not out[:2].isfinite().all()
    assert torch.equal(out[2:], expected[2:])
