"""One step as the runner sees it.

`StepRow` is the record the engine fills for each scheduled request; `build_batch` turns the
rows into tensors, the only place where that happens. Knows no policies and no reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.attention import AttentionWork
from ...kernels.lora import Segment


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
    temperature: float  # 0: greedy
    seed: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """Sampled tokens of one step, on the host."""

    tokens: dict[int, int]  # row -> token id, for the rows with sample=True
    # Rows with sample=True that got no token: their logits held NaN or infinity.
    not_finite: tuple[int, ...] = ()


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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step as tensors on the device. Views of the step buffers: the next step reuses them."""

    input_ids_T: Tensor
    position_T: Tensor
    attention: AttentionWork
    segments: tuple[Segment, ...]
    sample_idx: Tensor  # int64, places in the step whose next token is wanted
    sampled: tuple[StepRow, ...]  # the rows they belong to
    sampled_row: Tensor  # int64, their cells in the buffer of last tokens
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
        self.tokens_per_page = tokens_per_page
        self.max_pages = -(-limits.max_model_len // tokens_per_page)
        self.input_ids = _Staged("tokens of the step", tokens, device)
        self.positions = _Staged("tokens of the step", tokens, device)
        self.pages = _Staged("tokens of the step", tokens, device)
        self.offsets = _Staged("tokens of the step", tokens, device)
        self.fresh_pages = _Staged("tokens of the step", tokens, device)
        self.block_table = _Staged("block table entries", running * self.max_pages, device)
        self.sample_idx = _Staged("requests", running, device)
        self.sampled_row = _Staged("requests", running, device)
        self.feed_idx = _Staged("requests", running, device)
        self.feed_row = _Staged("requests", running, device)


class _Staged:
    """An int64 buffer on the device, filled from the host; on the CPU the two are one."""

    def __init__(self, name: str, size: int, device: torch.device) -> None:
        self._name = name
        pinned = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=pinned)
        self._numpy: NDArray[np.int64] = self._host.numpy()
        self._device = self._host.to(device)

    def put(self, values: NDArray[np.int64] | Sequence[int]) -> Tensor:
        size = len(values)
        if size > len(self._numpy):
            raise ValueError(f"{self._name}: {size} do not fit {len(self._numpy)}")
        self._numpy[:size] = values
        if self._device is not self._host:
            self._device[:size].copy_(self._host[:size], non_blocking=True)
        return self._device[:size]


def build_batch(rows: Sequence[StepRow], buffers: StepBuffers) -> Batch:
    """The one way from rows to tensors.

    Raises:
        ValueError: the step is larger than its buffers, or a row contradicts itself.
    """
    if not rows:
        raise ValueError("a step needs at least one row")
    lens = np.array([row.num_tokens for row in rows], dtype=np.int64)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    ends = np.cumsum(lens)
    positions = np.arange(ends[-1]) - np.repeat(ends - lens - starts, lens)
    table_BM = _block_table(rows, buffers)
    request_T = np.repeat(np.arange(len(rows)), lens)
    pages = table_BM[request_T, positions // buffers.tokens_per_page]
    offsets = positions % buffers.tokens_per_page
    feeds = [i for i, row in enumerate(rows) if not row.token_ids]
    sampled = [i for i, row in enumerate(rows) if row.sample]
    position_T = buffers.positions.put(positions)
    return Batch(
        input_ids_T=buffers.input_ids.put(_token_ids(rows)),
        position_T=position_T,
        attention=AttentionWork(
            query_lens=tuple(lens.tolist()),
            context_lens=tuple((starts + lens).tolist()),
            block_table_BM=buffers.block_table.put(table_BM.reshape(-1)).view(len(rows), -1),
            page_T=buffers.pages.put(pages),
            offset_T=buffers.offsets.put(offsets),
            position_T=position_T,
            fresh_pages=buffers.fresh_pages.put(pages[offsets == 0]),
        ),
        segments=_segments(rows, ends),
        sample_idx=buffers.sample_idx.put(ends[sampled] - 1),
        sampled=tuple(rows[i] for i in sampled),
        sampled_row=buffers.sampled_row.put([rows[i].row for i in sampled]),
        feed_idx=buffers.feed_idx.put(ends[feeds] - 1),
        feed_row=buffers.feed_row.put([rows[i].row for i in feeds]),
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
