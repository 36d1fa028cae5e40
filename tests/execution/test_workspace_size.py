"""The share of the pool's bytes that adapters in use are laid out in."""

import torch

from lorry.server.config import MIB
from lorry.server.execution.model import prepare_model
from lorry.server.execution.workspace_size import (
    MAX_ROWS,
    PAGES_FIRST_BYTES,
    choose_workspace_rows,
    make_workspace,
    rows_within,
    workspace_bytes,
)
from lorry.tests.execution_builders import tiny_llama


def test_pages_come_first() -> None:
    """A small pool that gave up a quarter would hold fewer requests than its operator counted."""
    loaded = prepare_model(tiny_llama())
    row_bytes = workspace_bytes(loaded, 1)
    assert choose_workspace_rows(loaded, PAGES_FIRST_BYTES) == 0
    assert choose_workspace_rows(loaded, PAGES_FIRST_BYTES + 10 * row_bytes) == 10
    assert rows_within(400 << 20, row_bytes=1 << 20) == 100
    pages = [size - rows_within(size, row_bytes=1 << 20) * MIB for size in range(0, 99 * MIB, MIB)]
    assert pages == sorted(pages), "more bytes gave fewer pages"
    assert choose_workspace_rows(loaded, 1 << 40) == MAX_ROWS


def test_the_bytes_are_those_that_are_taken() -> None:
    """Memory beside the pool that its flag does not count; the head is left out of both."""
    loaded = prepare_model(tiny_llama(vocab_size=5000).to(torch.bfloat16))
    workspace = make_workspace(loaded, 24)
    assert workspace is not None
    held = [part for site in workspace.sites for part in workspace.rows(site, slice(0, 24))]
    assert sum(part.nbytes for part in held) == workspace_bytes(loaded, 24)
    assert len(workspace.sites) == len(loaded.image_spec.sites) - 1
    assert workspace_bytes(loaded, 1) < 5000 * 2


def test_half_precision_keeps_to_the_tiles() -> None:
    """fp16 products would overflow where fp32 sums do not, and a CPU is slow at them."""
    loaded = prepare_model(tiny_llama().to(torch.float16))
    assert choose_workspace_rows(loaded, 1 << 40) == 0
    assert make_workspace(loaded, 24) is None
