"""SGLang's chunked SGMV, fed as its csgmv backend feeds it.

Owns the slots (A of a group's linears stacked by each adapter's own rank, B by the buffers'), and
the chunks of a step. `sglang-c16` has chunks of 16 rows, SGLang's default; `sglang-c128` lets them
grow with the step as its backend does when told so; `-r256` has buffers of a deployment for
ranks up to 256, the others of the case's largest rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs import SCALE, Inputs
from ..way import NamedWay, NotMeasured
from . import tables
from .loading import load

OPS = "sglang.kernels.ops.lora.dense"
TUNED = tables.TUNED / "sglang"
CONFIG_DIR_VARIABLE = "SGLANG_LORA_CONFIG_DIR"
MIN_CHUNK = 16
# From that many rows on, chunks of that many rows.
CHUNK_BY_ROWS = ((256, 128), (64, 32))


@dataclass(frozen=True, slots=True)
class Setting:
    max_chunk: int = MIN_CHUNK
    max_rank: int = 0  # of the buffers; 0: the largest of the case
    is_tuned: bool = False  # with the tables in peers/tuned/sglang


@dataclass(slots=True)
class BatchInfo:
    """The fields that the kernels read, by SGLang's names."""

    max_len: int  # rows of a chunk
    num_segments: int
    seg_indptr: Tensor
    weight_indices: Tensor
    permutation: Tensor
    lora_ranks: Tensor
    scalings: Tensor
    use_cuda_graph: bool = False  # the grid is as long as the chunks, not as the buffer


@dataclass(frozen=True, slots=True)
class _Stack:
    a_NRI: Tensor  # slices of an adapter follow each other at its own rank
    b_NOR: Tensor
    offsets: Tensor  # of the slices' columns, on the device
    offsets_host: Tensor
    num_slices: int
    max_width: int


class SglangWay:
    def __init__(self, inputs: Inputs, setting: Setting) -> None:
        if setting.is_tuned and (why := tables.why_untuned(inputs)):
            raise NotMeasured(why)
        case, self._inputs = inputs.case, inputs
        self._shrink = load(f"{OPS}.chunked_sgmv_shrink").chunked_sgmv_lora_shrink_forward
        self._expand = load(f"{OPS}.chunked_sgmv_expand").chunked_sgmv_lora_expand_forward
        _use_tables(setting.is_tuned)
        rank = setting.max_rank or max(case.ranks)
        self._chunk = chunk_rows(case.num_rows, setting.max_chunk)
        self._stacks = [
            [_stack(inputs, layer, group, rank) for group in range(len(case.layer.groups))]
            for layer in range(inputs.num_layers)
        ]
        num_chunks = sum(-(-(s.end - s.start) // self._chunk) for s in case.segments)
        self._info = self._empty_info(num_chunks)

    def prepare(self) -> None:
        case, info = self._inputs.case, self._info
        owners = torch.empty(case.num_rows, dtype=torch.int32)
        for segment in case.segments:
            owners[segment.start : segment.end] = segment.slot
        permutation = torch.argsort(owners, stable=True)
        adapters, starts = _chunks(owners[permutation], self._chunk)
        for target, source in (
            (info.permutation, permutation),
            (info.weight_indices, torch.tensor(adapters, dtype=torch.int32)),
            (info.seg_indptr, torch.tensor(starts, dtype=torch.int32)),
            (info.lora_ranks, torch.tensor(case.ranks, dtype=torch.int32)),
            (info.scalings, torch.full((case.num_adapters,), SCALE)),
        ):
            target.copy_(_pinned(source, self._inputs.device), non_blocking=True)

    def add(self, layer: int, group: int) -> None:
        inputs, stack = self._inputs, self._stacks[layer][group]
        shrunk = self._shrink(
            inputs.hidden[layer][group], stack.a_NRI, self._info, num_slices=stack.num_slices
        )
        self._expand(
            shrunk,
            stack.b_NOR,
            self._info,
            slice_offsets=stack.offsets,
            max_slice_size=stack.max_width,
            base_output=inputs.out[layer][group],
            slice_offsets_cpu=stack.offsets_host,
        )

    def _empty_info(self, num_chunks: int) -> BatchInfo:
        case, device = self._inputs.case, self._inputs.device

        def ints(size: int) -> Tensor:
            return torch.empty(size, dtype=torch.int32, device=device)

        return BatchInfo(
            max_len=self._chunk,
            num_segments=num_chunks,
            seg_indptr=ints(num_chunks + 1),
            weight_indices=ints(num_chunks),
            permutation=ints(case.num_rows),
            lora_ranks=ints(case.num_adapters),
            scalings=torch.empty(case.num_adapters, device=device),
        )


def chunk_rows(num_rows: int, max_chunk: int) -> int:
    """SGLang's rule: chunks grow with the step, up to what the deployment allows."""
    wanted = next((chunk for rows, chunk in CHUNK_BY_ROWS if num_rows >= rows), MIN_CHUNK)
    return max(MIN_CHUNK, min(max_chunk, wanted))


def _chunks(owners: Tensor, chunk: int) -> tuple[list[int], list[int]]:
    """The adapter of each chunk, and the bounds of the chunks, of rows sorted by adapter."""
    adapters: list[int] = []
    starts = [0]
    found, counts = torch.unique_consecutive(owners, return_counts=True)
    for adapter, count in zip(found.tolist(), counts.tolist(), strict=True):
        end = starts[-1] + count
        while starts[-1] < end:
            adapters.append(adapter)
            starts.append(min(starts[-1] + chunk, end))
    return adapters, starts


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _stack(inputs: Inputs, layer: int, group: int, rank: int) -> _Stack:
    shape, sites = inputs.case.layer.groups[group], inputs.sites(layer, group)
    n, slices = inputs.case.num_adapters, len(sites)
    new = inputs.pool_PE.new_zeros
    a_NRI = new(n, slices * rank, shape.in_width)
    b_NOR = new(n, shape.out_width, rank)
    bounds = [0]
    for width in shape.out_widths:
        bounds.append(bounds[-1] + width)
    for slot in range(n):
        for index, site in enumerate(sites):
            dense = inputs.dense(slot, site)
            own = len(dense.a_RI)
            a_NRI[slot, index * own : (index + 1) * own] = dense.a_RI
            b_NOR[slot, bounds[index] : bounds[index + 1], :own] = dense.b_RO.t()
    offsets = torch.tensor(bounds, dtype=torch.int32)
    return _Stack(a_NRI, b_NOR, offsets.to(inputs.device), offsets, slices, max(shape.out_widths))


def _use_tables(is_tuned: bool) -> None:
    """Our tuned tables, or those that come in the wheel; what was looked up before is forgotten."""
    if is_tuned:
        os.environ[CONFIG_DIR_VARIABLE] = str(TUNED)
    else:
        os.environ.pop(CONFIG_DIR_VARIABLE, None)
    load(f"{OPS}.lora_tuning_config").get_lora_configs.cache_clear()


def _way(name: str, note: str, setting: Setting) -> NamedWay:
    return NamedWay(
        name,
        note,
        lambda inputs: SglangWay(inputs, setting),
        peer="sglang",
        is_tuned=setting.is_tuned,
    )


WAYS = (
    _way("sglang-c16", "SGLang, chunks of 16, buffers of the case's largest rank", Setting()),
    _way("sglang-c128", "the same, chunks up to 128", Setting(128)),
    _way("sglang-c16-tuned", "chunks of 16, tuned tables", Setting(is_tuned=True)),
    _way("sglang-c128-tuned", "chunks up to 128, tuned tables", Setting(128, is_tuned=True)),
    _way("sglang-c16-r256", "SGLang deployed for rank 256, chunks of 16", Setting(16, 256)),
)
