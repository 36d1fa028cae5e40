"""The serving path on a GPU: lists of a step on the host, three kernels over the pages.

Owns the memory beside the pool (`StepMemory`), taken once; a step changes what is in it, never
where it is. What the layers launch after `prepare(fixed=True)` depends on shapes alone. On a CPU
the kernels run in Triton's interpreter, for tests. Loaded only where it is chosen.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..call import KernelCall
from ..staging import Staging
from .configs import BLOCKS, MERGE, SINGLE, pick_config
from .launch import attend_call, merge_call, store_call, take_memory
from .lists import StepLists, make_lists
from .room import AttentionRoom
from .work import AttentionOptions, AttentionWork

INTERPRETED_PROGRAMS = 3  # run one after the other: enough to show that the list is shared out


class TritonBackend:
    """See the Semantics in kernels/attention/__init__.py; one per runner."""

    needs_clear = False  # what is past a context is masked where it is loaded

    def __init__(self, room: AttentionRoom) -> None:
        self._room = room
        self._memory = take_memory(room, device=room.device)
        self._staging = Staging(len(self._memory.lists), room.device)
        self._num_sms = _num_sms(room.device)
        self._prepared: AttentionWork | None = None
        self._lists: StepLists | None = None
        self._fixed = False
        self._sinks = WeakTensorKeyDictionary()

    def prepare(self, work: AttentionWork, *, fixed: bool = False) -> None:
        requests, pages = work.block_table_BM.shape
        if pages > self._room.max_pages:
            raise ValueError(
                f"a block table of {pages} pages; the attention's room has {self._room.max_pages}"
            )
        lists = make_lists(work, self._memory.limits, fixed=fixed)
        self._staging.send(lists.numbers, self._memory.lists[: len(lists.numbers)])
        self._memory.table_BM[:requests, :pages].copy_(work.block_table_BM)
        cell_T = self._memory.cell_T[: work.num_tokens]
        torch.add(work.offset_T, work.page_T, alpha=self._room.tokens_per_page, out=cell_T)
        self._prepared, self._lists, self._fixed = work, lists, fixed

    def write_kv(
        self,
        key_TGK: Tensor,
        value_TGK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
    ) -> None:
        self._check(key_TGK, kv_PL2GZK, work, num_heads=self._room.num_kv_heads)
        store_call(key_TGK, value_TGK, kv_PL2GZK, self._memory, layer=layer).run()

    def paged_attention(
        self,
        query_THK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        self._check(query_THK, kv_PL2GZK, work, num_heads=self._room.num_heads)
        out_THK = torch.empty_like(query_THK)
        if options.sinks_H is not None:
            options = replace(options, sinks_H=self._in_fp32(options.sinks_H))
        for call in self.attend_calls(query_THK, kv_PL2GZK, out_THK, layer=layer, options=options):
            call.run()
        return out_THK

    def attend_calls(
        self,
        query_THK: Tensor,
        kv_PL2GZK: Tensor,
        out_THK: Tensor,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> list[KernelCall]:
        """What a layer of the prepared step launches, of a fixed one always the same."""
        lists, calls = self._lists, list[KernelCall]()
        num_rows, num_heads = out_THK.shape[:2]
        assert lists is not None, "prepare() comes first"
        for kind, num_items in ((SINGLE, lists.num_single), (BLOCKS, lists.num_blocks)):
            if num_items or (self._fixed and kind == SINGLE):
                call = attend_call(
                    kind,
                    query_THK,
                    kv_PL2GZK,
                    out_THK,
                    self._memory,
                    layer=layer,
                    options=options,
                    num_programs=self._attend_programs(kind, num_items),
                )
                calls.append(call)
        # A later step has at most as many rows, and each is merged once or not at all.
        num_merges = num_rows if self._fixed else lists.num_merges
        if num_merges:
            programs = min(self._num_sms * MERGE.programs_per_sm, num_merges * num_heads)
            calls.append(merge_call(out_THK, self._memory, options=options, num_programs=programs))
        return calls

    def _attend_programs(self, kind: str, num_items: int) -> int:
        room = self._room
        config = pick_config(kind, dtype=room.dtype, head_dim=room.head_dim, fold=room.fold)
        # As many as run at once; fewer where there is less to do and the step is not fixed.
        most = self._num_sms * config.programs_per_sm
        return most if self._fixed else min(most, num_items * room.num_kv_heads)

    def _in_fp32(self, sinks_H: Tensor) -> Tensor:
        """Converted once: they are a parameter of a model that is served, not trained."""
        if sinks_H.dtype == torch.float32:
            return sinks_H
        known = self._sinks.get(sinks_H)
        if known is None:
            known = sinks_H.float()
            # What a capture makes has no value until the graph is replayed.
            if not (known.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._sinks[sinks_H] = known
        return known

    def _check(
        self, rows: Tensor, kv_PL2GZK: Tensor, work: AttentionWork, *, num_heads: int
    ) -> None:
        if work is not self._prepared:
            raise ValueError("the attention's prepare() was not called for this step")
        room = self._room
        _, _, _, num_kv_heads, tokens_per_page, head_dim = kv_PL2GZK.shape
        made_for = (room.num_kv_heads, room.tokens_per_page, room.head_dim, room.dtype)
        if (num_kv_heads, tokens_per_page, head_dim, kv_PL2GZK.dtype) != made_for:
            raise ValueError(
                f"KV pages of shape {tuple(kv_PL2GZK.shape)} in {kv_PL2GZK.dtype}; the attention's "
                f"room is made for {made_for}"
            )
        if rows.shape[1] != num_heads or rows.dtype != room.dtype:
            raise ValueError(
                f"rows of shape {tuple(rows.shape)} in {rows.dtype}; the attention's room is made "
                f"for {num_heads} heads in {room.dtype}"
            )


def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count
