"""The Triton kernels of attention against plain attention: in the interpreter, or on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lorry.kernels.attention import (
    AttentionOptions,
    AttentionWork,
    choose_backend,
    write_kv,
)
from lorry.tests.attention_builders import CASES, LAYERS, OPTIONS, Step, on_device, triton_backend
from lorry.tests.kernels.tolerances import RELATIVE_ERROR, relative_error
from lorry.tests.kernels_builders import assert_close, make_work

# Interpreted on a CPU, and run by `make gpu` where there is one.
pytestmark = [pytest.mark.interpreter, pytest.mark.gpu]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def poisoned(case: str | tuple[list[int], list[int]], heads: int, kv_heads: int, **sizes) -> Step:
    """NaN wherever no token of the step's requests lies, as in pages that others left."""
    return Step(case, heads, kv_heads, device=DEVICE, cleared=False, **sizes)


def here(options: AttentionOptions, dtype: torch.dtype = torch.float32) -> AttentionOptions:
    sinks_H = options.sinks_H
    if sinks_H is None:
        return options
    return dataclasses.replace(options, sinks_H=sinks_H.to(DEVICE, dtype))


def assert_expected(step: Step, out: torch.Tensor, options: AttentionOptions) -> None:
    assert out.dtype == step.dtype
    error = relative_error(out, step.expected(options))
    assert error <= RELATIVE_ERROR[step.dtype]


# Hundreds of tokens in a chunk would take the interpreter long.
STEPS = {name: case for name, case in CASES.items() if name != "long-prefill"}
STEPS["several-blocks"] = ([5], [130])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", STEPS)
def test_equals_plain_attention(case: str, option: str) -> None:
    """Pages, chunks, windows, caps and sinks give what attention over whole contexts gives, and
    nothing of a page's other cells, which hold NaN."""
    step, options = poisoned(STEPS[case], 4, 2), here(OPTIONS[option])
    assert_expected(step, step.run(options, triton_backend(step)), options)


@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("case", ["decode", "mixed"])
def test_fp16_is_as_close_as_it_can_be(case: str, option: str) -> None:
    """Statistics and sums in fp32, whatever the model's dtype; sinks are in that, too."""
    step = poisoned(case, 4, 2, dtype=torch.float16)
    options = here(OPTIONS[option], torch.float16)
    assert_expected(step, step.run(options, triton_backend(step)), options)


@pytest.mark.parametrize(
    ("head_dim", "fold", "tokens_per_page"),
    [(16, 1, 8), (64, 7, 16), (80, 3, 16), (96, 4, 8), (112, 1, 16), (128, 4, 8), (256, 4, 16)],
    ids=str,
)
def test_any_head(head_dim: int, fold: int, tokens_per_page: int) -> None:
    """Head sizes that are no power of two, and any number of heads to a KV head."""
    step = poisoned(
        ([70, 3], [1, 21]), 2 * fold, 2, head_dim=head_dim, tokens_per_page=tokens_per_page
    )
    options = AttentionOptions(scaling=head_dim**-0.5, sliding_window=40)
    assert_expected(step, step.run(options, triton_backend(step)), options)


def test_more_heads_than_rows_of_a_block() -> None:
    """One KV head for 20 query heads: a token's heads alone are more than the smallest product."""
    step, options = poisoned(([30, 2], [1, 9]), 20, 1), OPTIONS["plain"]
    assert_expected(step, step.run(options, triton_backend(step)), options)


CUT = ([510, 511, 512, 900, 0], [1, 1, 1, 1, 1])


@pytest.mark.parametrize("option", ["plain", "sinks", "window", "wide-window", "all"])
def test_a_cut_context_equals_a_whole_one(option: str) -> None:
    """Contexts of one piece, of two or more with a shorter last; a window may hide whole pieces."""
    step = poisoned(CUT, 4, 2)
    options = here({**OPTIONS, "wide-window": AttentionOptions(0.35, 300)}[option])
    assert_expected(step, step.run(options, triton_backend(step)), options)


def test_more_pieces_than_are_added_up_at_once() -> None:
    """18 pieces, where partial results are summed 16 at a time."""
    step, options = poisoned(([4607], [1]), 2, 1), OPTIONS["plain"]
    assert_expected(step, step.run(options, triton_backend(step)), options)


def test_a_row_alone_is_bit_for_bit_the_row_in_a_batch() -> None:
    """Who shares a step decides neither how a context is cut nor the order of a sum. A chunk is
    one request's rows of one step: cut elsewhere, its bits may differ (`assert_close` below)."""
    step, options = poisoned(([700, 7, 40, 513], [1, 19, 1, 1]), 4, 2), here(OPTIONS["all"])
    together = step.run(options, triton_backend(step))
    for request in range(4):
        work, rows = step.alone(request)
        query_THK = torch.cat(step.q)[rows]
        for fixed in (False, True) if rows.stop - rows.start == 1 else (False,):
            out = step.run(
                options, triton_backend(step), work=work, query_THK=query_THK, fixed=fixed
            )
            assert torch.equal(out, together[rows])


def test_a_chunked_prefill_equals_one_of_a_piece() -> None:
    """Where a prompt is cut is the scheduler's business, and nothing of the numbers'."""
    whole, options = poisoned(([0], [90]), 4, 2), OPTIONS["window"]
    expected = whole.run(options, triton_backend(whole))
    for start, end in ((0, 33), (33, 34), (34, 90)):
        part, _ = make_work([start], [end - start], 16)
        work = on_device(part, DEVICE)
        pages = whole.work.block_table_BM[:, : work.block_table_BM.shape[1]]
        page_T = pages[0, work.position_T // 16]
        work = dataclasses.replace(work, block_table_BM=pages, page_T=page_T)
        query_THK = torch.cat(whole.q)[start:end]
        out = whole.run(options, triton_backend(whole), work=work, query_THK=query_THK)
        assert_close(out, expected[start:end])


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_past_the_step_are_not_looked_at(fixed: bool) -> None:
    """A graph's tensors have the rows of its bucket; what lies in those past the step is NaN."""
    step, options = poisoned("mixed", 4, 2), here(OPTIONS["all"])
    query_THK = torch.full((80, 4, 8), torch.nan, device=DEVICE)
    num_tokens = step.work.num_tokens
    query_THK[:num_tokens] = torch.cat(step.q)
    out = step.run(options, triton_backend(step, max_rows=80), query_THK=query_THK, fixed=fixed)
    assert_expected(step, out[:num_tokens], options)


def test_what_was_launched_once_serves_any_later_step() -> None:
    """A recorded graph launches the same again: the step must be in memory, not in a launch."""
    step = poisoned(([700, 40, 513, 9, 511], [1, 1, 1, 1, 1]), 4, 2)
    options = here(OPTIONS["all"])
    backend = triton_backend(step, max_rows=8)
    query_THK = torch.full((8, 4, 8), torch.nan, device=DEVICE)
    out_THK = torch.empty_like(query_THK)
    expected = step.expected(options)

    def prepare(work: AttentionWork, rows: slice) -> None:
        backend.prepare(work, fixed=True)
        query_THK.fill_(torch.nan)
        query_THK[: work.num_tokens] = torch.cat(step.q)[rows]

    prepare(*step.alone(3))
    calls = backend.attend_calls(query_THK, step.kv, out_THK, layer=1, options=options)
    for work, rows in (step.alone(3), (step.work, slice(0, 5)), step.alone(2), step.alone(1)):
        prepare(work, rows)
        for call in calls:
            call.run()
        assert_close(out_THK[: work.num_tokens], expected[rows])
        again = backend.attend_calls(query_THK, step.kv, out_THK, layer=1, options=options)
        assert [(c.grid, c.options) for c in again] == [(c.grid, c.options) for c in calls]
        assert all(
            x is y
            for a, b in zip(again, calls, strict=True)
            for x, y in zip(a.args, b.args, strict=True)
            if isinstance(x, torch.Tensor)
        )
    # Two rows of four heads, and no program that could only find nothing to merge.
    few = backend.attend_calls(query_THK[:2], step.kv, out_THK[:2], layer=1, options=options)
    assert few[-1].grid == (8,)


def test_sinks_become_fp32_once() -> None:
    """A launch more in each layer of each step, for what never changes."""
    backend = triton_backend(poisoned("one-token", 4, 2))
    sinks_H = torch.tensor([0.5, -1.0, 2.0, 1.0], dtype=torch.float16, device=DEVICE)
    known = backend._in_fp32(sinks_H)
    assert known.dtype == torch.float32 and torch.equal(known, sinks_H.float())
    assert backend._in_fp32(sinks_H) is known and backend._in_fp32(known) is known


@pytest.mark.parametrize("head_dim", [8, 80])
@pytest.mark.parametrize("layout", ["rows", "heads", "merged", "odd"])
def test_keys_and_values_are_stored_from_any_strides(layout: str, head_dim: int) -> None:
    """Projections come transposed, merged with their siblings, or at odd places."""
    work, num_pages = make_work([14, 3, 0], [3, 1, 21], 16)
    work = on_device(work, DEVICE)
    generator = torch.Generator().manual_seed(2)

    def make(rows: int) -> torch.Tensor:
        shape = {
            "rows": (rows, 3, head_dim),
            "heads": (3, rows, head_dim),
            "merged": (rows, 3, 4 * head_dim),
            "odd": (rows, 3, head_dim + 1),
        }[layout]
        values = torch.randn(shape, generator=generator)
        values = values.transpose(0, 1) if layout == "heads" else values
        values[25:] = torch.nan
        return values.to(DEVICE)[:, :, -head_dim:]

    step = poisoned(([14], [3]), 3, 3, head_dim=head_dim)
    backend = triton_backend(step, max_rows=32, max_requests=3)
    page = (LAYERS, 2, 3, 16, head_dim)
    kv = torch.full((num_pages + 1, *page), 7.0, device=DEVICE)
    expected, key_TGK, value_TGK = kv.clone(), make(32), make(32)
    backend.prepare(work, fixed=True)
    write_kv(key_TGK, value_TGK, kv, work, layer=1, backend=backend)
    reference = choose_backend("reference")
    write_kv(key_TGK[:25], value_TGK[:25], expected, work, layer=1, backend=reference)
    assert torch.equal(kv, expected)


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    """Memory is taken once: a larger step would write past its end."""
    step = poisoned("mixed", 4, 2)
    for changes, words in (
        ({"max_rows": 67}, "68 tokens; .* 67"),
        ({"max_requests": 4}, "5 requests; .* 4"),
        ({"max_pages": 7}, "8 pages; .* 7"),
    ):
        with pytest.raises(ValueError, match=words):
            triton_backend(step, **changes).prepare(step.work)
    backend = triton_backend(step)
    with pytest.raises(ValueError, match="prepare"):
        write_kv(*[torch.cat(step.q)[:, :2]] * 2, step.kv, step.work, layer=0, backend=backend)
    kv_heads_THK = torch.cat(step.q)[:, :2].contiguous()
    with pytest.raises(ValueError, match="for 4 heads"):
        step.run(OPTIONS["plain"], backend, query_THK=kv_heads_THK)
    with pytest.raises(ValueError, match="heads of 300"):
        triton_backend(poisoned("one-token", 1, 1, head_dim=300))
    with pytest.raises(ValueError, match="room"):
        choose_backend("triton")
