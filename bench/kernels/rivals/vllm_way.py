"""vLLM's `lora_shrink` and `lora_expand`, fed as its LoRA layers feed them.

Owns the padded stacks (one [adapter, rank, in] and [adapter, out, rank] a linear, B times the
scale), the buffer of a call, and the metadata of a step. `vllm` is the control: buffers no larger
than the case needs, the grid cut to the adapters in use. `vllm-r256` is a deployment for ranks up
to 256 and at least 64 adapters, with vLLM's default settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inputs import SCALE, Inputs
from ..way import NamedWay, NotMeasured
from . import tables
from .loading import load

OPS = "vllm.lora.ops.triton_ops"
TUNED = tables.TUNED / "vllm"
DEPLOYED_RANK, DEPLOYED_ADAPTERS = 256, 64


@dataclass(frozen=True, slots=True)
class Setting:
    """How vLLM is deployed."""

    max_rank: int = 0  # of the buffers; 0: the largest of the case
    max_loras: int = 0  # slots that the metadata has room for; 0: the case's adapters
    is_specialized: bool = True  # `specialize_active_lora`: the grid follows the adapters in use
    is_tuned: bool = False  # with the tables in peers/tuned/vllm


class VllmWay:
    def __init__(self, inputs: Inputs, setting: Setting) -> None:
        if inputs.dtype == torch.float32:
            raise NotMeasured("vLLM's kernels take bf16 and fp16 only")
        if setting.is_tuned and (why := tables.why_untuned(inputs)):
            raise NotMeasured(why)
        self._inputs, self._setting = inputs, setting
        self._shrink = load(f"{OPS}.lora_shrink_op").lora_shrink
        self._expand = load(f"{OPS}.lora_expand_op").lora_expand
        _use_tables(setting.is_tuned)
        case = inputs.case
        self._rank = setting.max_rank or max(case.ranks)
        self._a: list[Tensor] = []
        self._b: list[Tensor] = []
        for site in range(len(inputs.table.sites)):
            a_NRI, b_NOR = stack_site(inputs, site, self._rank)
            self._a.append(a_NRI)
            self._b.append(b_NOR)
        self._meta = load(f"{OPS}.lora_kernel_metadata").LoRAKernelMeta.make(
            max(setting.max_loras, case.num_adapters), case.num_rows, device=inputs.device
        )

    def prepare(self) -> None:
        case = self._inputs.case
        owners = torch.empty(case.num_rows, dtype=torch.int64)
        for segment in case.segments:
            owners[segment.start : segment.end] = segment.slot
        # vLLM sorts and counts on the device, and waits for it.
        self._meta.prepare_tensors(owners.to(self._inputs.device))

    def add(self, layer: int, group: int) -> None:
        inputs = self._inputs
        hidden_TI, sites = inputs.hidden[layer][group], inputs.sites(layer, group)
        rows = len(hidden_TI)
        meta: Any = self._meta.meta_args(rows, self._setting.is_specialized)
        buffer = torch.empty(
            len(sites), rows, self._rank, dtype=torch.float32, device=inputs.device
        )
        a_stacks = [self._a[site] for site in sites]
        b_stacks = [self._b[site] for site in sites]
        # The scale lies in B already; the buffer is zeroed inside.
        self._shrink(hidden_TI, a_stacks, buffer, *meta, 1.0)
        self._expand(
            buffer, b_stacks, inputs.out[layer][group], *meta, offset_start=0, add_inputs=True
        )


def stack_site(inputs: Inputs, site: int, rank: int) -> tuple[Tensor, Tensor]:
    """A [N, rank, I] and B [N, O, rank] of all adapters, zeros past each one's own rank."""
    shape, n = inputs.table.sites[site], inputs.case.num_adapters
    new = inputs.pool_PE.new_zeros
    a_NRI, b_NOR = new(n, rank, shape.in_width), new(n, shape.out_width, rank)
    for slot in range(n):
        dense = inputs.dense(slot, site)
        own = len(dense.a_RI)
        a_NRI[slot, :own] = dense.a_RI
        b_NOR[slot, :, :own] = dense.b_RO.t() * SCALE
    return a_NRI, b_NOR


def _use_tables(is_tuned: bool) -> None:
    """Tuned or default tables; what was looked up before is forgotten.

    So are the addresses of weights, which vLLM keeps for ever: the next case's lie there too.
    """
    utils = load(f"{OPS}.utils")
    utils.envs.VLLM_TUNED_CONFIG_FOLDER = str(TUNED) if is_tuned else None
    utils.load_lora_op_config.cache_clear()
    utils.get_lora_op_configs.cache_clear()
    utils._LORA_A_PTR_DICT.clear()
    utils._LORA_B_PTR_DICT.clear()


def _way(name: str, note: str, setting: Setting) -> NamedWay:
    return NamedWay(
        name, note, lambda inputs: VllmWay(inputs, setting), peer="vllm", is_tuned=setting.is_tuned
    )


DEPLOYED = Setting(DEPLOYED_RANK, DEPLOYED_ADAPTERS, is_specialized=False)
WAYS = (
    _way("vllm", "vLLM, buffers of the case's largest rank, default tables", Setting()),
    _way("vllm-tuned", "the same, tuned tables", Setting(is_tuned=True)),
    _way("vllm-r256", "vLLM deployed for rank 256 and 64 adapters, default tables", DEPLOYED),
)
