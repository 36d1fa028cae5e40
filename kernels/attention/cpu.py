"""The serving path: requests of like length together, gathered page by page, two bmm.

A piece is up to 256 queries of one request; pieces whose gathered pages fit the workspace
form a group with padded query and context lengths, so a step's decode rows are usually one
group. A group whose context is too long for that is a single piece that goes over its pages
block by block with a running softmax (Milakov and Gimelshein 2018, as in FlashAttention): what
a step takes outside the pool is bounded whatever a context's length (`CpuBackend`). Query heads
that share a KV head are folded into the rows of one product. Which pieces share a group is
worked out once per step and kept for all layers.
Relies on `clear_fresh`: cells past the context are masked, so they only need to be finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .scatter import TorchBackend
from .work import AttentionOptions, AttentionWork

PIECE_TOKENS = 256
# Queries of a short chunk are padded to the longest of their group, up to this many.
SHORT_TOKENS = 16
MAX_SCORES = 1 << 23  # elements of the scores computed at once: bounds temporaries
# Pages are padded to the longest context of a group: to twice the real ones at most, or by
# this many, which cost less than one more group.
PADDING_PAGES = 64


@dataclass(frozen=True, slots=True)
class _Piece:
    request: int
    first_row: int
    num_rows: int
    num_pages: int  # that its last query can see


@dataclass(slots=True, eq=False)
class _Group:
    """Pieces computed together. B counts pieces, Q queries of each, M pages of each."""

    row_N: Tensor  # [B * Q] rows of the step; padding repeats a piece's last row
    whole_step: bool  # row_N is every row of the step in order: nothing to pick or to put back
    position_BQ: Tensor
    # int64, the pool seen as rows [P*L*2*G, Z*K]: where each page begins
    first_unit_BM: Tensor
    num_pieces: int
    num_queries: int
    num_pages: int
    block_pages: int  # gathered at once; num_pages where the whole context fits
    # One additive mask [B, 1, 1, Q, M*Z] per sliding window, as far as there is room for them.
    masks: dict[int | None, Tensor] = field(default_factory=dict)


class CpuBackend(TorchBackend):
    """See the Semantics in kernels/attention/__init__.py.

    Beside the result and the plan (the step's block table, one int64 a row), memory is taken
    for `workspace_elements` of gathered keys and values, and for `max_scores` scores, a few
    times over in their dtype and fp32, or what one page and 256 queries need where that is
    more. Masks kept between layers are `max_scores` elements at most.
    """

    def __init__(self, *, workspace_elements: int, max_scores: int = MAX_SCORES) -> None:
        self._workspace_elements = workspace_elements
        self._max_scores = max_scores
        self._workspace: Tensor | None = None
        self._planned_for: AttentionWork | None = None
        self._groups: list[_Group] = []
        self._mask_elements = 0  # kept for the planned step

    def paged_attention(
        self,
        query_THK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        if self._planned_for is not work:
            self._groups = self._plan(query_THK.shape[1], kv_PL2GZK, work)
            self._planned_for = work
            self._mask_elements = 0
        if self._groups[0].whole_step:
            return self._attend_group(query_THK, kv_PL2GZK, self._groups[0], layer, options)
        out_THK = torch.empty_like(query_THK)
        for group in self._groups:
            query_NHK = query_THK.index_select(0, group.row_N)
            out_NHK = self._attend_group(query_NHK, kv_PL2GZK, group, layer, options)
            # Padding repeats a row with the same result, so writing it twice does no harm.
            out_THK.index_copy_(0, group.row_N, out_NHK)
        return out_THK

    def _attend_group(
        self,
        query_NHK: Tensor,
        kv_PL2GZK: Tensor,
        group: _Group,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        query = _fold(query_NHK, group, kv_PL2GZK.shape[3])
        attend = self._attend_by_blocks
        if group.block_pages == group.num_pages:
            attend = self._attend
        return _unfold(attend(query, kv_PL2GZK, group, layer, options), query_NHK)

    def _attend(
        self,
        query_BGFQK: Tensor,
        kv_PL2GZK: Tensor,
        group: _Group,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        """The whole context at once."""
        kv = self._gather(kv_PL2GZK, group, layer, 0, group.num_pages)
        mask = self._mask(group, kv_PL2GZK, options)
        weights = _softmax(_scores(query_BGFQK, kv[0], mask, options), options)
        return _product(weights, kv[1], query_BGFQK.shape)

    def _attend_by_blocks(
        self,
        query_BGFQK: Tensor,
        kv_PL2GZK: Tensor,
        group: _Group,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        """Block after block: what was summed before is scaled down when the maximum grows."""
        top, total = _start(query_BGFQK, options)
        out = torch.zeros(query_BGFQK.shape, dtype=torch.float32, device=query_BGFQK.device)
        for first, end in _blocks(group):
            kv = self._gather(kv_PL2GZK, group, layer, first, end)
            mask = _make_mask(group, kv_PL2GZK, options, first, end)
            scores = _scores(query_BGFQK, kv[0], mask, options).float()
            # Never below the start, which is finite: a block may be hidden from a row.
            new_top = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            shrunk = torch.exp(top - new_top)
            weights = scores.sub_(new_top).exp_()
            total = total * shrunk + weights.sum(dim=-1, keepdim=True)
            part = _product(weights.to(query_BGFQK.dtype), kv[1], query_BGFQK.shape)
            out.mul_(shrunk).add_(part)
            top = new_top
        return out.div_(total).to(query_BGFQK.dtype)

    def _gather(
        self, kv_PL2GZK: Tensor, group: _Group, layer: int, first_page: int, end_page: int
    ) -> Tensor:
        """K and V of these pages of the group as [2, B * G, pages * Z, K] in the workspace."""
        _, _, _, num_kv_heads, tokens_per_page, head_dim = kv_PL2GZK.shape
        unit = tokens_per_page * head_dim
        units = kv_PL2GZK.view(-1, unit)
        first = layer * 2 * num_kv_heads
        head_2G = torch.arange(first, first + 2 * num_kv_heads, device=units.device)
        head_21G1 = head_2G.view(2, 1, num_kv_heads, 1)
        index = (group.first_unit_BM[:, None, first_page:end_page] + head_21G1).view(-1)
        needed = index.shape[0] * unit
        if self._workspace is None or self._workspace.numel() < needed:
            size = max(needed, self._workspace_elements)
            self._workspace = torch.empty(size, dtype=units.dtype, device=units.device)
        gathered = self._workspace[:needed].view(-1, unit)
        torch.index_select(units, 0, index, out=gathered)
        batch = group.num_pieces * num_kv_heads
        return gathered.view(2, batch, (end_page - first_page) * tokens_per_page, head_dim)

    def _mask(self, group: _Group, kv_PL2GZK: Tensor, options: AttentionOptions) -> Tensor:
        mask = group.masks.get(options.sliding_window)
        if mask is None:
            mask = _make_mask(group, kv_PL2GZK, options, 0, group.num_pages)
            if self._mask_elements + mask.numel() <= self._max_scores:
                self._mask_elements += mask.numel()
                group.masks[options.sliding_window] = mask
        return mask

    def _plan(self, num_heads: int, kv_PL2GZK: Tensor, work: AttentionWork) -> list[_Group]:
        _, _, _, num_kv_heads, tokens_per_page, head_dim = kv_PL2GZK.shape
        page_elements = 2 * num_kv_heads * tokens_per_page * head_dim

        def room(count: int, num_queries: int) -> int:
            """Pages of each of `count` pieces that may be gathered and scored at once."""
            by_workspace = self._workspace_elements // (count * page_elements)
            by_scores = self._max_scores // (count * num_heads * num_queries * tokens_per_page)
            return min(by_workspace, by_scores)

        groups: list[_Group] = []
        members: list[_Piece] = []

        def close() -> None:
            longest = max(piece.num_pages for piece in members)
            num_queries = max(piece.num_rows for piece in members)
            block_pages = min(longest, max(1, room(len(members), num_queries)))
            groups.append(_group(members, kv_PL2GZK, work, block_pages=block_pages))
            members.clear()

        real_pages = num_queries = 0
        for piece in sorted(_pieces(work, tokens_per_page), key=_likeness):
            # In this order the newest piece always has the most pages of its class.
            count = len(members) + 1
            real_pages += piece.num_pages
            num_queries = max(num_queries, piece.num_rows)
            padding = count * piece.num_pages - real_pages
            if members and (
                _length_class(piece) != _length_class(members[0])
                or piece.num_pages > room(count, num_queries)
                or padding > max(real_pages, PADDING_PAGES)
            ):
                close()
                real_pages, num_queries = piece.num_pages, piece.num_rows
            members.append(piece)
        close()
        return groups


def _pieces(work: AttentionWork, tokens_per_page: int) -> list[_Piece]:
    pieces: list[_Piece] = []
    row = 0
    for request, (length, context) in enumerate(
        zip(work.query_lens, work.context_lens, strict=True)
    ):
        for first in range(0, length, PIECE_TOKENS):
            num_rows = min(PIECE_TOKENS, length - first)
            seen = context - length + first + num_rows
            pieces.append(_Piece(request, row + first, num_rows, -(-seen // tokens_per_page)))
        row += length
    return pieces


def _length_class(piece: _Piece) -> int:
    """0 decode, 1 short, and every longer length by itself."""
    if piece.num_rows == 1:
        return 0
    return 1 if piece.num_rows <= SHORT_TOKENS else piece.num_rows


def _likeness(piece: _Piece) -> tuple[int, int, int]:
    return (_length_class(piece), piece.num_pages, piece.first_row)


def _group(
    members: list[_Piece], kv_PL2GZK: Tensor, work: AttentionWork, *, block_pages: int
) -> _Group:
    _, num_layers, _, num_kv_heads, _, _ = kv_PL2GZK.shape
    device = kv_PL2GZK.device
    num_queries = max(piece.num_rows for piece in members)
    num_pages = max(piece.num_pages for piece in members)
    rows = [
        piece.first_row + min(i, piece.num_rows - 1)
        for piece in members
        for i in range(num_queries)
    ]
    row_N = torch.tensor(rows, dtype=torch.int64, device=device)
    request_B = torch.tensor([piece.request for piece in members], dtype=torch.int64, device=device)
    # A row of the block table may be shorter than the group's longest: it repeats its last
    # page up to the table's width, which is at least that of any piece.
    page_BM = work.block_table_BM[:, :num_pages].index_select(0, request_B)
    return _Group(
        row_N=row_N,
        whole_step=rows == list(range(work.num_tokens)),
        position_BQ=work.position_T.index_select(0, row_N).view(len(members), num_queries),
        first_unit_BM=page_BM.mul_(num_layers * 2 * num_kv_heads),
        num_pieces=len(members),
        num_queries=num_queries,
        num_pages=num_pages,
        block_pages=block_pages,
    )


def _blocks(group: _Group) -> Iterator[tuple[int, int]]:
    for first in range(0, group.num_pages, group.block_pages):
        yield first, min(first + group.block_pages, group.num_pages)


def _make_mask(
    group: _Group, kv_PL2GZK: Tensor, options: AttentionOptions, first_page: int, end_page: int
) -> Tensor:
    """Zero where a query may look, minus infinity elsewhere: [B, 1, 1, Q, C] of these pages."""
    tokens_per_page, device = kv_PL2GZK.shape[4], kv_PL2GZK.device
    position_C = torch.arange(
        first_page * tokens_per_page, end_page * tokens_per_page, device=device
    )
    position_BQ1 = group.position_BQ[:, :, None]
    hidden_BQC = position_C > position_BQ1
    if options.sliding_window is not None:
        hidden_BQC |= position_C <= position_BQ1 - options.sliding_window
    mask_BQC = torch.zeros(hidden_BQC.shape, dtype=kv_PL2GZK.dtype, device=device)
    return mask_BQC.masked_fill_(hidden_BQC, -torch.inf)[:, None, None]


def _fold(query_NHK: Tensor, group: _Group, num_kv_heads: int) -> Tensor:
    """Rows [B * Q, H, K] as [B, G, F, Q, K], contiguous."""
    _, num_heads, head_dim = query_NHK.shape
    query = query_NHK.view(
        group.num_pieces, group.num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim
    )
    return query.permute(0, 2, 3, 1, 4).contiguous()


def _unfold(out_BGFQK: Tensor, query_THK: Tensor) -> Tensor:
    """And back to rows [B * Q, H, K]."""
    return out_BGFQK.permute(0, 3, 1, 2, 4).reshape(-1, *query_THK.shape[1:])


def _scores(query_BGFQK: Tensor, key: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Masked scores [B, G, F, Q, C] over keys [B * G, C, K]."""
    pieces, groups, fold, queries, head_dim = query_BGFQK.shape
    batch, context = key.shape[:2]
    query, key = query_BGFQK.view(batch, fold * queries, head_dim), key.transpose(1, 2)
    if options.softcap is None:
        # The product is added to the mask: one pass over the scores less than the other way.
        masks = mask.expand(pieces, groups, fold, queries, context)
        # A copy in any case: the mask is kept for the next layer.
        scores = masks.clone(memory_format=torch.contiguous_format)
        scores = scores.view(batch, fold * queries, context)
        scores.baddbmm_(query, key, alpha=options.scaling)
        return scores.view(pieces, groups, fold, queries, context)
    scores = query.new_empty(batch, fold * queries, context)
    torch.baddbmm(scores, query, key, beta=0.0, alpha=options.scaling, out=scores)
    scores.div_(options.softcap).tanh_().mul_(options.softcap)
    return scores.view(pieces, groups, fold, queries, context).add_(mask)


def _product(weights_BGFQC: Tensor, value: Tensor, shape: torch.Size) -> Tensor:
    """Weighted values [B, G, F, Q, K] over [B * G, C, K]."""
    batch, context = value.shape[:2]
    return torch.bmm(weights_BGFQC.view(batch, -1, context), value).view(shape)


def _softmax(scores_BGFQC: Tensor, options: AttentionOptions) -> Tensor:
    if options.sinks_H is None:
        weights = torch.softmax(scores_BGFQC, dim=-1, dtype=torch.float32)
        return weights.to(scores_BGFQC.dtype)
    pieces, groups, fold, queries, context = scores_BGFQC.shape
    sinks = options.sinks_H.view(1, groups, fold, 1, 1).expand(pieces, -1, -1, queries, 1)
    scores = torch.cat([scores_BGFQC.float(), sinks.float()], dim=-1)
    return torch.softmax(scores, dim=-1)[..., :context].to(scores_BGFQC.dtype).contiguous()


def _start(query_BGFQK: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Maximum and sum [B, G, F, Q, 1] before the first block: the sink's, or next to nothing."""
    pieces, groups, fold, queries, _ = query_BGFQK.shape
    lowest = torch.finfo(torch.float32).min
    if options.sinks_H is None:
        top = query_BGFQK.new_full((pieces, groups, fold, queries, 1), lowest, dtype=torch.float32)
        return top, torch.zeros_like(top)
    sinks = options.sinks_H.float().view(1, groups, fold, 1, 1)
    sinks = sinks.expand(pieces, -1, -1, queries, 1)
    top = sinks.clamp_min(lowest)
    return top, torch.exp(sinks - top)
