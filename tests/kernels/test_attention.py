"""Paged attention: both backends against torch's own on contiguous keys and values."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorry.kernels.attention import (
    AttentionOptions,
    AttentionWork,
    choose_backend,
    clear_fresh,
    paged_attention,
    view_kv,
    write_kv,
)
from lorry.kernels.attention.cpu import CpuBackend
from lorry.tests.attention_builders import CASES, LAYERS, OPTIONS, K, Step, Z
from lorry.tests.kernels_builders import assert_close, make_work

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_attention(case: str, option: str, backend: str) -> None:
    """Pages, chunks, windows, caps and sinks give what attention over whole contexts gives."""
    step = Step(case, heads=4, kv_heads=2)
    out = step.run(OPTIONS[option], choose_backend(backend))
    assert_close(out, step.expected(OPTIONS[option]))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)], ids=str)
def test_query_heads_share_kv_heads(heads: int, kv_heads: int) -> None:
    """Head h reads KV head h // (H / G), for one, some and all heads a group (anchor 33)."""
    step = Step("mixed", heads, kv_heads)
    out = step.run(OPTIONS["plain"], choose_backend("cpu"))
    assert_close(out, step.expected(OPTIONS["plain"]))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", ["decode", "chunks", "long-prefill", "mixed"])
def test_a_small_workspace_only_makes_more_groups_and_blocks(case: str, option: str) -> None:
    """What does not fit together is computed one after the other, and a context that does not
    fit alone block by block: windows that hide whole blocks, caps and sinks included."""
    step = Step(case, heads=4, kv_heads=2)
    page = 2 * 2 * Z * K
    for workspace, max_scores in ((1, 1), (2 * page, 1 << 30), (1 << 30, 4 * 2 * Z)):
        backend = CpuBackend(workspace_elements=workspace, max_scores=max_scores)
        assert_close(step.run(OPTIONS[option], backend), step.expected(OPTIONS[option]))
        assert any(group.block_pages < group.num_pages for group in backend._groups)


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that any operator has made; views count as what they show."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else []
        if not func.is_view:
            self.elements = max([self.elements, *(tensor.numel() for tensor in made)])
        return out


@pytest.mark.parametrize("option", ["plain", "all"])
def test_memory_does_not_grow_with_the_context(option: str) -> None:
    """A chunk of 256 at the end of a long context took scores of 256 x context, and a copy of the
    whole context, beside a pool that had been sized without them."""
    num_pages, heads = 600, 4
    page_elements, table = 2 * 2 * Z * K, torch.arange(num_pages)[None]
    workspace, max_scores = 40 * page_elements, 256 * heads * Z * 8
    position_T = torch.arange(num_pages * Z - 256, num_pages * Z)
    work = AttentionWork(
        query_lens=(256,),
        context_lens=(num_pages * Z,),
        block_table_BM=table,
        page_T=table[0, position_T // Z],
        offset_T=position_T % Z,
        position_T=position_T,
        fresh_pages=torch.empty(0, dtype=torch.int64),
    )
    kv = torch.randn(num_pages, 1, 2, 2, Z, K, generator=torch.Generator().manual_seed(3))
    query = torch.randn(256, heads, K, generator=torch.Generator().manual_seed(4))
    backend = CpuBackend(workspace_elements=workspace, max_scores=max_scores)
    with LargestResult() as largest:
        for _ in range(2):
            out = paged_attention(
                query, kv, work, layer=0, options=OPTIONS[option], backend=backend
            )
    assert largest.elements <= max(workspace, max_scores)
    assert max_scores < 256 * heads * num_pages * Z / 50
    kept = backend._groups[0]
    assert kept.first_unit_BM.numel() == num_pages and not kept.masks
    reference = choose_backend("reference")
    expected = paged_attention(query, kv, work, layer=0, options=OPTIONS[option], backend=reference)
    assert_close(out, expected)


def test_a_long_context_does_not_pad_the_short_ones() -> None:
    """One request of 9,000 tokens among 30 of 60 used to make all 31 gather 9,000."""
    starts = [59] * 30 + [8999]
    work, num_pages = make_work(starts, [1] * 31, Z)
    kv = torch.randn(num_pages, 1, 2, 2, Z, K, generator=torch.Generator().manual_seed(3))
    query = torch.randn(31, 4, K, generator=torch.Generator().manual_seed(4))
    backend, options = CpuBackend(workspace_elements=1 << 24), OPTIONS["plain"]
    out = paged_attention(query, kv, work, layer=0, options=options, backend=backend)
    padded = sum(group.num_pieces * group.num_pages for group in backend._groups)
    assert padded <= 2 * num_pages
    assert len(backend._groups) == 2
    reference = choose_backend("reference")
    expected = paged_attention(query, kv, work, layer=0, options=options, backend=reference)
    assert_close(out, expected)


def test_masks_are_kept_up_to_the_bound() -> None:
    """Masks are kept from layer to layer; those of many groups together could outgrow a step."""
    step, max_scores = Step("long-prefill", heads=4, kv_heads=2), 4 * 256 * 38 * Z
    backend = CpuBackend(workspace_elements=1 << 24, max_scores=max_scores)
    for window in (None, 11, 5):
        options = AttentionOptions(scaling=0.35, sliding_window=window)
        assert_close(step.run(options, backend), step.expected(options))
    kept = [mask.numel() for group in backend._groups for mask in group.masks.values()]
    assert max_scores / 2 < sum(kept) <= max_scores
    assert len(kept) < 3 * len(backend._groups)


def test_a_request_alone_equals_itself_in_a_batch() -> None:
    """Padding to the longest neighbour must not reach a request's numbers (anchor 27)."""
    together = Step("decode", heads=4, kv_heads=2)
    out = together.run(OPTIONS["plain"], choose_backend("cpu"))
    for i in range(5):
        alone = Step("decode", heads=4, kv_heads=2)
        w = alone.work
        alone.work = replace(
            w,
            query_lens=(1,),
            context_lens=w.context_lens[i : i + 1],
            block_table_BM=w.block_table_BM[i : i + 1],
            page_T=w.page_T[i : i + 1],
            offset_T=w.offset_T[i : i + 1],
            position_T=w.position_T[i : i + 1],
        )
        alone.q = alone.q[i : i + 1]
        assert_close(alone.run(OPTIONS["plain"], choose_backend("cpu"))[0], out[i])


def test_only_fresh_pages_are_cleared_and_only_own_cells_written() -> None:
    """A step must not touch pages of others: they hold other requests and adapters."""
    work, num_pages = make_work([14], [3], Z)
    kv = torch.full((num_pages + 3, LAYERS, 2, 2, Z, K), 7.0)
    clear_fresh(kv, work)
    backend = choose_backend("reference")
    write_kv(torch.ones(3, 2, K), torch.ones(3, 2, K) * 2, kv, work, layer=1, backend=backend)
    first, second = work.block_table_BM[0].tolist()
    assert (kv[num_pages:] == 7).all()
    assert (kv[first, 1, :, :, :14] == 7).all()
    assert (kv[first, 0] == 7).all()
    assert (kv[first, 1, 0, :, 14:] == 1).all()
    assert (kv[first, 1, 1, :, 14:] == 2).all()
    assert (kv[second, 1, 0, :, :1] == 1).all()
    assert (kv[second, 1, :, :, 1:] == 0).all()
    assert (kv[second, 0] == 0).all()


def test_wrong_arguments_are_refused_by_name() -> None:
    """A wrong stride or head count would be wrong numbers without a word."""
    step = Step("decode", heads=4, kv_heads=2)
    backend, options = choose_backend("cpu"), OPTIONS["plain"]

    def attend(query: torch.Tensor) -> None:
        paged_attention(query, step.kv, step.work, layer=1, options=options, backend=backend)

    with pytest.raises(ValueError, match="contiguous"):
        attend(torch.zeros(5, K, 4).transpose(1, 2))
    with pytest.raises(ValueError, match="evenly"):
        attend(torch.zeros(5, 3, K))
    with pytest.raises(ValueError, match="axis T"):
        attend(torch.zeros(4, 4, K))
    with pytest.raises(ValueError, match="elements each"):
        view_kv(torch.zeros(3, 100), num_layers=1, num_kv_heads=1, tokens_per_page=Z, head_dim=K)
