"""What the device computes of cold rows at a site: its own lists between warm ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lorry.kernels.lora import (
    LoraBackend,
    LoraRoom,
    LoraWork,
    Segment,
    Workspace,
    add_lora,
    choose_backend,
)
from lorry.server.execution.cold_start.step import BODY, HEAD, ColdProducts
from lorry.tests.kernels.tolerances import RELATIVE_ERROR, relative_error
from lorry.tests.kernels_builders import INTERPRETED, LoraPool

WIDTHS = (64, 36)
WARM = [Segment(0, 3, 0)]
COLD = [Segment(3, 8, 1), Segment(8, 9, 2), Segment(10, 14, 3)]


def make_backends(name: str, pool: LoraPool) -> tuple[LoraBackend, LoraBackend]:
    """Of warm rows, and of cold ones: on a GPU they are the same."""
    if name == "triton":
        room = LoraRoom((16, 4, 16, 4), 4, 64, pool.pool_PE.device)
        backend = choose_backend(name, table=pool.table, room=room)
        return backend, backend
    workspace = Workspace({0: pool.table.sites[0]}, num_rows=64, dtype=pool.dtype)
    return choose_backend("cpu", workspace=workspace), choose_backend("dense")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        pytest.param("triton", torch.float32, marks=INTERPRETED),
    ],
    ids=str,
)
def test_rows_change_sides_between_two_sites(name: str, dtype: torch.dtype) -> None:
    """Layers land and slots are lost in the middle of a step: the lists of what the device computes
    change with that, and those of warm rows must not."""
    pool = LoraPool([5, 8, 24, 40], in_width=WIDTHS[0], out_width=WIDTHS[1], dtype=dtype)
    warm_backend, cold_backend = make_backends(name, pool)
    warm = [LoraWork(pool.table, WARM), None]
    warm_backend.prepare(warm)
    products = ColdProducts(cold_backend, pool.table, pool.pool_PE, warm=warm)
    hidden, base = (pool.random(14, width) for width in WIDTHS)

    def check(part: int, cold: Sequence[Segment], head: int = 14) -> None:
        out = base[:head].clone()
        if part == BODY:
            work = warm[0]
            assert work is not None
            add_lora(hidden, pool.pool_PE, work, sites=(0,), outs_TO=(out,), backend=warm_backend)
        products.add(part, cold, hidden[:head], sites=(0,), outs_TO=(out,))
        segments = [*(WARM if part == BODY else ()), *cold]
        dense = pool.dense_output(hidden[:head], base[:head], segments)
        assert relative_error(out, dense) <= RELATIVE_ERROR[dtype]

    for cold in (COLD, COLD[1:], []):
        check(BODY, cold)
    check(HEAD, [Segment(0, 1, 1), Segment(2, 3, 3)], head=3)
    check(BODY, COLD[:1])
