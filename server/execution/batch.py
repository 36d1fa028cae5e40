"""One step as the runner sees it.

`StepRow` is the record the engine fills for each scheduled request; `build_batch` turns the
rows into tensors, the only place where that happens. Knows no policies and no reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.attention import AttentionWork
from ...kernels.lora import Segment
from ..scheduling.records import MAX_PROMPT_LOGITS, NO_PLACES
from ..scheduling.sampling import SamplingParams, TokenLogprobs
from ..scheduling.starts import Way
from .staging import Numbers, Staging, room_cells

TOKEN_ARRAYS, ROW_ARRAYS = 5, 4  # of a batch, as long as its tokens and its requests
# Numbers that choosing one row's token takes at most, without its history: its place, its
# parameters and its noise, each an array of its own where no other row is of its kind.
SAMPLER_CELLS = 8


@dataclass(frozen=True, slots=True)
class StepRow:
    """One request's part of a step. Rows of a step are ordered by adapter slot, base first."""

    row: int  # the request's cell in the device's buffer of last tokens
    # Tokens to feed; empty: feed the token sampled last for this row, straight on the device.
    token_ids: Sequence[int]
    num_tokens: int  # 1 when token_ids is empty
    start: int  # position of the first token: how many are computed already
    # Page numbers in order; they cover start + num_tokens tokens. An array of 64-bit integers is
    # copied as a block, anything else number by number.
    pages: Sequence[int]
    adapter_slot: int  # -1: base model
    sample: bool  # whether this chunk ends at the last known token, so that a new one is wanted
    sampling: SamplingParams
    # Prompt and answer so far, the request's own list: who it belongs to is told by its identity.
    known_ids: Sequence[int] = ()
    num_prompt: int = 0  # of those, tokens of the prompt
    tell: range = NO_PLACES  # positions in this chunk whose next token, of the prompt, is judged
    # How the adapter is had: from the pool, or, while its pages are on their way, layer by layer.
    # WAIT is none of a step's. Rows of one slot agree.
    way: Way = Way.WARM


@dataclass(frozen=True, slots=True)
class ToldPrompt:
    """A stretch of one row's prompt."""

    row: int
    first_position: int  # of the first entry's token
    logprobs: tuple[TokenLogprobs, ...]


def _no_logprobs() -> dict[int, TokenLogprobs]:
    return {}


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sampled tokens of one step, on the host."""

    tokens: dict[int, int]  # row -> token id, for the rows with sample=True
    # Rows whose logits held NaN or infinity: they got no token, and nothing of theirs is told.
    not_finite: tuple[int, ...] = ()
    # row -> its token's, for rows that want them
    logprobs: dict[int, TokenLogprobs] = field(default_factory=_no_logprobs)
    told: tuple[ToldPrompt, ...] = ()  # a stretch for each row with places to tell
    # Rows whose adapter's product could not be had in time: what was computed for them is void,
    # they got no token, and nothing of theirs is told.
    lost: tuple[int, ...] = ()
    num_errands: int = 0  # that helpers were sent
    helped_s: float = (
        0.0  # duration: by which sending them and waiting for answers held up the step
    )


@dataclass(frozen=True, slots=True)
class StepCapacity:
    """The largest step that buffers are made for."""

    max_running: int  # requests in one step
    max_step_tokens: int
    max_model_len: int  # tokens of one request
    # Cells of the buffer of last tokens: requests known at once, waiting ones included, since
    # a preempted request keeps its row.
    max_rows: int
    max_rank: int = 256
    max_prompt_logits: int = MAX_PROMPT_LOGITS  # places of prompts that are told in one step
    workspace_rows: int = 64  # rank rows of adapters in use that are laid out whole (CPU)

    @property
    def max_logit_rows(self) -> int:
        """Places of one step whose logits are computed."""
        return self.max_running + min(self.max_prompt_logits, self.max_step_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step as tensors on the device. Views of the step buffers: the next step reuses them."""

    input_ids_T: Tensor
    position_T: Tensor
    attention: AttentionWork
    segments: tuple[Segment, ...]
    head_segments: tuple[Segment, ...]  # the same over the places of sample_idx
    ways: Mapping[int, Way]  # slot -> how it is had, of those whose pages are on their way
    # int64, places in the step whose logits are wanted, in the order of the rows; of one row the
    # places of its prompt come first, then the place whose next token is sampled.
    sample_idx: Tensor
    told: tuple[tuple[StepRow, int], ...]  # rows with places to tell, and the first one's logits
    drawn: tuple[StepRow, ...]  # rows that get a token
    drawn_idx: Tensor  # int64, which of the logits they are drawn from
    drawn_row: Tensor  # int64, their cells in the buffer of last tokens
    feed_idx: Tensor  # int64, places in the step that take the row's last token
    feed_row: Tensor  # int64, and the cells they take it from

    def feed(self, last_token_R: Tensor) -> None:
        """Put the tokens sampled last into their places, without a look from the host."""
        if self.feed_idx.numel():
            self.input_ids_T.index_copy_(
                0, self.feed_idx, last_token_R.index_select(0, self.feed_row)
            )


class StepBuffers:
    """Room for the tensors of the largest step, so that a step allocates none of them."""

    def __init__(self, limits: StepCapacity, *, tokens_per_page: int, device: torch.device) -> None:
        tokens, running = limits.max_step_tokens, limits.max_running
        self.limits = limits
        self.tokens_per_page = tokens_per_page
        self.max_pages = -(-limits.max_model_len // tokens_per_page)
        num_values = (
            TOKEN_ARRAYS * tokens
            + limits.max_logit_rows
            + ROW_ARRAYS * running
            + running * self.max_pages
            + SAMPLER_CELLS * running
        )
        num_arrays = TOKEN_ARRAYS + ROW_ARRAYS + 2 + SAMPLER_CELLS * running
        self.staging = Staging(room_cells(num_arrays, num_values), device)

    def put_tokens(self, values: Numbers, *, bucket: int) -> Tensor:
        """With zeros up to the bucket."""
        return self._put("tokens of the step", self.limits.max_step_tokens, values, bucket)

    def put_places(self, values: Numbers, *, bucket: int) -> Tensor:
        """With zeros up to the bucket."""
        return self._put("logits", self.limits.max_logit_rows, values, bucket)

    def put_rows(self, values: Numbers) -> Tensor:
        return self._put("requests", self.limits.max_running, values, 0)

    def put_table(self, table_BM: NDArray[np.int64]) -> Tensor:
        limit = self.limits.max_running * self.max_pages
        return self._put("block table entries", limit, table_BM.reshape(-1), 0).view(table_BM.shape)

    def _put(self, name: str, limit: int, values: Numbers, room: int) -> Tensor:
        if len(values) > limit:
            raise ValueError(f"{name}: {len(values)} do not fit {limit}")
        return self.staging.put(values, room=room)


def build_batch(rows: Sequence[StepRow], buffers: StepBuffers, *, bucket: int = 0) -> Batch:
    """The one way from rows to tensors.

    With a `bucket` all rows are of one token and sampled; token ids, positions and places are
    then as many as that, those past the rows are zeros, and all three lie where they lie in any
    step of this bucket.

    Raises:
        ValueError: the step is larger than its buffers, or a row contradicts itself.
    """
    if not rows:
        raise ValueError("a step needs at least one row")
    buffers.staging.turn()
    lens = np.array([row.num_tokens for row in rows], dtype=np.int64)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    ends = np.cumsum(lens)
    positions = np.arange(ends[-1]) - np.repeat(ends - lens - starts, lens)
    feeds = [i for i, row in enumerate(rows) if not row.token_ids]
    drawn = [row for row in rows if row.sample]
    wanted = _logit_places(rows, ends - lens)
    segments, places = _segments(rows, ends), np.array(wanted.places, dtype=np.int64)
    # First what a recording reads: its places depend on the bucket alone.
    input_ids_T = buffers.put_tokens(_token_ids(rows), bucket=bucket)
    position_T = buffers.put_tokens(positions, bucket=bucket)
    sample_idx = buffers.put_places(places, bucket=bucket)
    batch = Batch(
        input_ids_T=input_ids_T,
        position_T=position_T,
        attention=_attention_work(rows, lens, starts, positions, position_T, buffers),
        segments=segments,
        head_segments=_among(segments, places),
        ways={row.adapter_slot: row.way for row in rows if row.way is not Way.WARM},
        sample_idx=sample_idx,
        told=tuple(wanted.told),
        drawn=tuple(drawn),
        drawn_idx=buffers.put_rows(wanted.drawn),
        drawn_row=buffers.put_rows([row.row for row in drawn]),
        feed_idx=buffers.put_rows(ends[feeds] - 1),
        feed_row=buffers.put_rows([rows[i].row for i in feeds]),
    )
    buffers.staging.send()
    return batch


def _attention_work(  # noqa: PLR0917 - the step's own arrays, in their order
    rows: Sequence[StepRow],
    lens: NDArray[np.int64],
    starts: NDArray[np.int64],
    positions: NDArray[np.int64],
    position_T: Tensor,
    buffers: StepBuffers,
) -> AttentionWork:
    """The step's tokens alone, without a bucket's padding."""
    table_BM = _block_table(rows, buffers)
    pages = table_BM[np.repeat(np.arange(len(rows)), lens), positions // buffers.tokens_per_page]
    offsets = positions % buffers.tokens_per_page
    return AttentionWork(
        query_lens=tuple(lens.tolist()),
        context_lens=tuple((starts + lens).tolist()),
        block_table_BM=buffers.put_table(table_BM),
        page_T=buffers.put_tokens(pages, bucket=0),
        offset_T=buffers.put_tokens(offsets, bucket=0),
        position_T=position_T[: len(positions)],
        fresh_pages=buffers.put_tokens(pages[offsets == 0], bucket=0),
    )


def _block_table(rows: Sequence[StepRow], buffers: StepBuffers) -> NDArray[np.int64]:
    """Pages of each row; the tail repeats the last one, so that nobody else's is ever read."""
    used = [-(-(row.start + row.num_tokens) // buffers.tokens_per_page) for row in rows]
    table_BM = np.empty((len(rows), max(used)), dtype=np.int64)
    for i, (row, count) in enumerate(zip(rows, used, strict=True)):
        if row.num_tokens < 1 or len(row.pages) < count:
            raise ValueError(
                f"row {row.row}: {row.num_tokens} tokens from {row.start} on need {count} pages, "
                f"it has {len(row.pages)}"
            )
        table_BM[i, :count] = row.pages[:count]
        table_BM[i, count:] = row.pages[count - 1]
    return table_BM


def _token_ids(rows: Sequence[StepRow]) -> list[int]:
    token_ids: list[int] = []
    for row in rows:
        if len(row.token_ids) != row.num_tokens and (row.token_ids or row.num_tokens != 1):
            raise ValueError(
                f"row {row.row}: {len(row.token_ids)} token ids for {row.num_tokens} tokens"
            )
        token_ids.extend(row.token_ids or (0,))
    return token_ids


class _LogitPlaces(NamedTuple):
    places: list[int]  # in the step
    told: list[tuple[StepRow, int]]  # row, and where in `places` its stretch begins
    drawn: list[int]  # where in `places` each sampled row's last token is


def _logit_places(rows: Sequence[StepRow], firsts: NDArray[np.int64]) -> _LogitPlaces:
    """Of each row the places it tells, then its last one if a token is wanted."""
    found = _LogitPlaces([], [], [])
    for row, first in zip(rows, firsts.tolist(), strict=True):
        end = row.start + row.num_tokens
        if row.tell:
            if not row.start <= row.tell.start <= row.tell.stop <= min(end, row.num_prompt - 1):
                raise ValueError(
                    f"row {row.row}: places {row.tell} are to be told, the chunk is "
                    f"[{row.start}, {end}) of a prompt of {row.num_prompt}"
                )
            found.told.append((row, len(found.places)))
            shift = first - row.start
            found.places.extend(range(row.tell.start + shift, row.tell.stop + shift))
        if row.sample:
            found.drawn.append(len(found.places))
            found.places.append(first + row.num_tokens - 1)
    return found


def _segments(rows: Sequence[StepRow], ends: NDArray[np.int64]) -> tuple[Segment, ...]:
    """Neighbours of one slot make one segment."""
    segments: list[Segment] = []
    for row, end in zip(rows, ends.tolist(), strict=True):
        if row.adapter_slot < 0:
            continue
        start = end - row.num_tokens
        last = segments[-1] if segments else None
        if last is not None and last.slot == row.adapter_slot and last.end == start:
            segments[-1] = Segment(last.start, end, last.slot)
        else:
            segments.append(Segment(start, end, row.adapter_slot))
    return tuple(segments)


def _among(segments: Sequence[Segment], places: NDArray[np.int64]) -> tuple[Segment, ...]:
    """The segments of the step, seen by a module that is given the rows at `places` only."""
    bounds = [(s.slot, *np.searchsorted(places, (s.start, s.end)).tolist()) for s in segments]
    return tuple(Segment(start, end, slot) for slot, start, end in bounds if start < end)
