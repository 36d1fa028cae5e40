"""The largest steps a server may meet, as rows: what they take, no later step takes more.

Owns their shape. First as many tokens as a step may have, with as many logits and as much asked
of the sampler; then one chunk at the end of the longest context beside everyone else's single
token: attention takes long contexts in blocks of bounded size, so one shows what all would need.
All rows share the same pages over and over. On a GPU smaller steps follow, with adapters and
without: a kernel is compiled, and memory is cut to size, before the first request and not during
it. Called by the runner at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...adapters.image import ImageLayout, ImageSpec, SiteRank, plan_image
from ..scheduling.sampling import SamplingParams
from .batch import StepCapacity, StepRow

TAIL_TOKENS = 64  # a chunk at the longest context
LOW_RANK = 16  # of an adapter that a server meets every day
# Everything a request can ask of its tokens at once; what is asked of the prompt is in `tell`.
DEMANDING = SamplingParams(
    temperature=0.7,
    top_k=1000,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
    logprobs=20,
    prompt_logprobs=20,
)


def largest_step(limits: StepCapacity, pages: Sequence[int]) -> list[StepRow]:
    """Long chunks first, and one token at least for everyone."""
    left = min(limits.max_prompt_logits, limits.max_step_tokens)
    rows: list[StepRow] = []
    for row, num_tokens in enumerate(_largest_lens(limits)):
        told = min(left, num_tokens)
        left -= told
        rows.append(_row(row, num_tokens, 0, pages, told))
    return rows


def longest_step(limits: StepCapacity, pages: Sequence[int]) -> list[StepRow]:
    first, *others = _largest_lens(limits)
    first = min(first, TAIL_TOKENS)
    rows = [_row(0, first, limits.max_model_len - first, pages, 0)]
    return rows + [_row(row, 1, 0, pages, 0) for row in range(1, len(others) + 1)]


def decode_step(num_rows: int, pages: Sequence[int]) -> list[StepRow]:
    """One token each, drawn by nobody's wish."""
    return [_plain(_row(row, 1, 0, pages, 0), -1) for row in range(num_rows)]


def ladder(
    limits: StepCapacity, pages: Sequence[int], slots: Sequence[int]
) -> Iterator[list[StepRow]]:
    """Steps of half as many tokens each, from the largest on: of the base alone, and with every
    slot given. Nothing is told, so that they go the way that most steps go.
    """
    num_tokens = limits.max_step_tokens
    while num_tokens:
        yield _even_step(limits, pages, num_tokens, [-1])
        if slots:
            yield _even_step(limits, pages, num_tokens, [-1, *slots])
        num_tokens //= 2


def warm_up_layouts(spec: ImageSpec, max_rank: int, num_pages: int) -> list[ImageLayout]:
    """Adapters of a low and of the highest rank at every site, as far as so many pages hold them
    one by one: which kernels are launched may depend on the rank.
    """
    layouts = [warm_up_layout(spec, rank) for rank in sorted({min(LOW_RANK, max_rank), max_rank})]
    return [layout for layout in layouts if layout.num_pages <= num_pages]


def rehearsal_pages(spec: ImageSpec, max_rank: int) -> int:
    """Of a pool just large enough for steps with an adapter."""
    return warm_up_layout(spec, min(LOW_RANK, max_rank)).num_pages


def warm_up_layout(spec: ImageSpec, rank: int) -> ImageLayout:
    ranks = [
        SiteRank(idx, min(rank, site.in_width, site.out_width), 1.0)
        for idx, site in enumerate(spec.sites)
    ]
    return plan_image(spec, ranks)


def _even_step(
    limits: StepCapacity, pages: Sequence[int], num_tokens: int, slots: Sequence[int]
) -> list[StepRow]:
    """The tokens shared out among the slots, as far as a context holds them."""
    slots = slots[: min(limits.max_running, num_tokens)]
    share = min(num_tokens // len(slots), limits.max_model_len)
    return [_plain(_row(row, share, 0, pages, 0), slot) for row, slot in enumerate(slots)]


def _plain(row: StepRow, slot: int) -> StepRow:
    return replace(row, adapter_slot=slot, sampling=SamplingParams())


def _row(row: int, num_tokens: int, start: int, pages: Sequence[int], num_told: int) -> StepRow:
    end = start + num_tokens
    return StepRow(
        row,
        [0] * num_tokens,
        num_tokens,
        start,
        pages,
        -1,
        True,
        DEMANDING,
        known_ids=[0] * (end + 1),
        num_prompt=end + 1,
        tell=range(start, start + num_told),
    )


def _largest_lens(limits: StepCapacity) -> list[int]:
    lens, left = list[int](), limits.max_step_tokens
    for to_come in range(min(limits.max_running, limits.max_step_tokens) - 1, -1, -1):
        lens.append(min(limits.max_model_len, left - to_come))
        left -= lens[-1]
    return lens
