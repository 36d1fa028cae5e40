"""Staged numbers: where they lie, and that a step's do not run into another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorry.server.execution.buckets import batch_buckets, pick_bucket
from lorry.server.execution.staging import MAX_FLIGHTS, Staging, room_cells

CPU = torch.device("cpu")


def test_every_array_is_what_was_put() -> None:
    """Integers and floats side by side, padded ones, an empty one: no array reaches into the
    next."""
    staging = Staging(64, CPU)
    for _ in range(3):
        staging.turn()
        first = staging.put([1, 2, 3])
        padded = staging.put(np.array([7], dtype=np.int64), room=4)
        halves = staging.put([0.5, 0.25, -1.0], torch.float32)
        empty = staging.put([])
        last = staging.put([-(1 << 62)])
        staging.send()
        assert first.tolist() == [1, 2, 3]
        assert padded.tolist() == [7, 0, 0, 0]
        assert halves.tolist() == [0.5, 0.25, -1.0]
        assert empty.tolist() == []
        assert last.tolist() == [-(1 << 62)]


def test_a_place_depends_on_what_was_put_before_it_alone() -> None:
    """A recording reads the addresses of the step it was made with; and where an array begins
    must not choose another kernel."""
    staging = Staging(64, CPU)
    seen: list[list[int]] = []
    for length in (1, 3, 4):
        staging.turn()
        arrays = [staging.put(range(length), room=4) for _ in range(3)]
        arrays.append(staging.put([1.0], torch.float32))
        seen.append([array.data_ptr() for array in arrays])
    assert seen[0] == seen[1] == seen[2]
    assert all((place - seen[0][0]) % 16 == 0 for place in seen[0])


def test_what_does_not_fit_is_refused() -> None:
    """Anything else would be another array's numbers."""
    staging = Staging(room_cells(2, 7), CPU)
    staging.put(range(5))
    staging.put(range(2))
    staging.turn()
    with pytest.raises(ValueError, match="do not fit"):
        staging.put(range(100))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_under_way_keeps_its_numbers() -> None:
    """The host writes the next step while the device still waits to copy this one."""
    device = torch.device("cuda")
    staging = Staging(1 << 16, device)
    kept: list[torch.Tensor] = []
    for step in range(20 * MAX_FLIGHTS):
        staging.turn()
        torch.cuda._sleep(100_000)  # pyright: ignore[reportPrivateUsage]
        placed = staging.put(np.full(1 << 16, step, dtype=np.int64))
        staging.send()
        kept.append(placed.amin() + placed.amax())
    assert torch.stack(kept).tolist() == [2 * step for step in range(len(kept))]


@pytest.mark.parametrize("max_running", [1, 2, 3, 7, 8, 12, 64, 65, 100, 256])
def test_buckets_hold_every_step_with_little_padding(max_running: int) -> None:
    """A step without a bucket would run eagerly; one in a bucket too large computes for nobody."""
    buckets = batch_buckets(max_running)
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] == max_running
    for num_rows in range(1, max_running + 1):
        bucket = pick_bucket(buckets, num_rows)
        assert num_rows <= bucket <= max(num_rows + 15, 2 * num_rows - 1, 1)
        assert bucket - num_rows < 8 or num_rows > 64
    assert pick_bucket(buckets, max_running + 1) == 0
    assert len(buckets) <= 11 + max(0, max_running - 64) // 16 + 1
