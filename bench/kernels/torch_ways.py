"""Two ways in plain torch: a gathered batch of padded factors, and PEFT's loop over adapters.

`gather-bmm` is what a server without kernels of its own does: every adapter padded to the largest
rank of the case, each row's own factors gathered, two `bmm` a site. `peft-loop` is PEFT's
arithmetic for a mixed batch (`adapter_names`): for each adapter its rows, two `linear`, the scale,
and the sum with the output.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .inputs import SCALE, Dense, Inputs
from .way import NamedWay, NotMeasured

# Factors that one site gathers for all rows at once; a server would not spend more on it.
MAX_GATHERED_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}


class GatherBmm:
    def __init__(self, inputs: Inputs) -> None:
        case, self._inputs = inputs.case, inputs
        max_rank = max(case.ranks)
        widest = max(max(site.in_width, site.out_width) for site in case.layer.sites)
        gathered = case.num_rows * max_rank * widest * inputs.dtype.itemsize
        limit = MAX_GATHERED_BYTES[inputs.device.type]
        if gathered > limit:
            raise NotMeasured(
                f"would gather {gathered / 2**30:.1f} GiB at one site; the bench stops at "
                f"{limit / 2**30:.0f}"
            )
        self._stacks = [_stack(inputs, site, max_rank) for site in range(len(inputs.table.sites))]
        self._adapter_T = torch.empty(case.num_rows, dtype=torch.int64, device=inputs.device)

    def prepare(self) -> None:
        owners = torch.empty(self._inputs.case.num_rows, dtype=torch.int64)
        for segment in self._inputs.case.segments:
            owners[segment.start : segment.end] = segment.slot
        self._adapter_T.copy_(owners)

    def add(self, layer: int, group: int) -> None:
        inputs = self._inputs
        rows_T1I = inputs.hidden[layer][group][:, None, :]
        outs = inputs.outs(layer, group)
        for site, out in zip(inputs.sites(layer, group), outs, strict=True):
            a_NIR, b_NRO = self._stacks[site]
            shrunk = torch.bmm(rows_T1I, a_NIR.index_select(0, self._adapter_T))
            delta = torch.bmm(shrunk, b_NRO.index_select(0, self._adapter_T))
            out.add_(delta[:, 0], alpha=SCALE)


def _stack(inputs: Inputs, site: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [N, I, rank] and B [N, rank, O] of all adapters, zeros past each one's own rank."""
    shape, n = inputs.table.sites[site], inputs.case.num_adapters
    new = inputs.pool_PE.new_zeros
    a_NRI, b_NRO = new(n, rank, shape.in_width), new(n, rank, shape.out_width)
    for slot in range(n):
        dense = inputs.dense(slot, site)
        a_NRI[slot, : len(dense.a_RI)] = dense.a_RI
        b_NRO[slot, : len(dense.b_RO)] = dense.b_RO
    return a_NRI.transpose(1, 2), b_NRO


class PeftLoop:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        sites, slots = range(len(inputs.table.sites)), range(inputs.case.num_adapters)
        self._dense = [[_as_peft(inputs.dense(slot, site)) for slot in slots] for site in sites]

    def prepare(self) -> None:
        """Nothing: the loop reads the segments."""

    def add(self, layer: int, group: int) -> None:
        inputs = self._inputs
        hidden_TI = inputs.hidden[layer][group]
        outs = inputs.outs(layer, group)
        for site, out_TO in zip(inputs.sites(layer, group), outs, strict=True):
            for segment in inputs.case.segments:
                dense = self._dense[site][segment.slot]
                rows = slice(segment.start, segment.end)
                shrunk = functional.linear(hidden_TI[rows], dense.a_RI)
                out_TO[rows] += functional.linear(shrunk, dense.b_RO) * SCALE


def _as_peft(dense: Dense) -> Dense:
    """PEFT keeps B as [out, rank]."""
    return Dense(dense.a_RI, dense.b_RO.t().contiguous())


TORCH_WAYS = (
    NamedWay("gather-bmm", "torch: factors padded, gathered row by row, bmm", GatherBmm),
    NamedWay("peft-loop", "PEFT's arithmetic, one adapter after the other", PeftLoop),
)
