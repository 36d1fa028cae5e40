"""The start of a GPU's server, on no GPU: what its pool gets, and when that is found."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

from lorry.server.execution.batch import StepCapacity
from lorry.server.execution.graph_proof import num_kv_pages
from lorry.server.execution.model import prepare_model
from lorry.server.execution.pool_size import GPU_MARGIN_BYTES
from lorry.server.execution.runner import Runner
from lorry.server.execution.start import rehearse
from lorry.server.execution.warm_up import rehearsal_pages
from lorry.tests.execution_builders import LIMITS, tiny_llama


class Warm:
    """A runner; like one with recordings it holds itself in a circle."""

    def __init__(self) -> None:
        self.itself = self


def rehearse_with(free_bytes: int) -> tuple[int, int, list[str]]:
    """Bytes for the pool, bytes of the rehearsed one, and what happened in which order."""
    loaded, told = prepare_model(tiny_llama()), list[str]()
    asked: list[int] = []

    def build(num_pages: int, limits: StepCapacity) -> Runner:
        runner = Warm()
        weakref.finalize(runner, told.append, "given back")
        asked.append(num_pages * loaded.page_bytes)
        told.append("warm")
        return cast(Any, runner)

    def look() -> int:
        gc.collect()
        told.append("looked")
        return free_bytes

    pool_bytes = rehearse(loaded, LIMITS, build, look)
    told.append("over")
    pages = rehearsal_pages(loaded.image_spec, LIMITS.max_rank)
    pages += num_kv_pages(LIMITS, loaded.geometry.tokens_per_page)
    assert asked == [pages * loaded.page_bytes]
    return pool_bytes, asked[0], told


def test_a_gpu_s_pool_gets_what_a_whole_server_leaves() -> None:
    """Free memory measured before the recordings, or a rehearsed server that is never given back:
    out of memory in the middle of a request."""
    free_bytes = 5 * GPU_MARGIN_BYTES
    pool_bytes, rehearsed_bytes, told = rehearse_with(free_bytes)
    assert told == ["warm", "looked", "given back", "over"]
    assert pool_bytes == free_bytes + rehearsed_bytes - GPU_MARGIN_BYTES


def test_a_full_gpu_has_no_pool() -> None:
    """A negative number of bytes would be some number of pages."""
    assert rehearse_with(7)[0] == 0
