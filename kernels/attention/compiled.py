"""The attention kernels as the compile check sees them: the calls of a launch, without memory.

Owns which variants of a model's kernels are worth a compilation. Everything else (table, launch)
is what a server uses. Called through `configs.compile_cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..call import KernelCall
from ..cases import CompileCase
from .configs import BLOCKS, SINGLE, ModelShape
from .launch import StepMemory, attend_call, merge_call, store_call, take_memory
from .room import AttentionRoom
from .work import AttentionOptions

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
META = torch.device("meta")
NUM_ROWS = 64


def cases(shapes: Sequence[ModelShape]) -> Iterator[CompileCase]:
    """Each kernel for each dtype and shape with every option, and for the first one plain too."""
    for i, shape in enumerate(shapes):
        for dtype_name, dtype in DTYPES.items():
            for kernel, variant in _KERNELS if i == 0 else _KERNELS[::2]:
                yield CompileCase(
                    name=f"{kernel}/{variant}/{dtype_name}/{shape.name}",
                    build=_bind(_BUILDERS[kernel], shape, dtype, _options(shape, variant)),
                )
    yield CompileCase(
        name=f"store_pages/plain/bf16/{shapes[0].name}-odd-strides",
        build=_bind(_store_odd, shapes[0], torch.bfloat16, _options(shapes[0], "plain")),
        unaligned="keys and values whose rows are no multiple of 16 bytes apart",
    )


def _options(shape: ModelShape, variant: str) -> AttentionOptions:
    scaling = shape.head_dim**-0.5
    if variant == "plain":
        return AttentionOptions(scaling)
    return AttentionOptions(scaling, 512, 50.0, torch.empty(shape.num_heads, device=META))


_Build = Callable[["_Model", AttentionOptions], KernelCall]


class _Model:
    """Tensors of a step of one model, none of which has memory."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype) -> None:
        heads, kv_heads, head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.room = AttentionRoom(
            max_rows=8192,
            max_requests=256,
            max_pages=8192,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            tokens_per_page=shape.tokens_per_page,
            dtype=dtype,
            device=META,
        )
        self.query_THK = torch.empty(NUM_ROWS, heads, head_dim, dtype=dtype, device=META)
        # Neighbours in one merged projection: strides of the merged width.
        merged = torch.empty(NUM_ROWS, heads + 2 * kv_heads, head_dim, dtype=dtype, device=META)
        self.key_TGK, self.value_TGK = merged[:, heads:].split(kv_heads, 1)
        page = (shape.num_layers, 2, kv_heads, shape.tokens_per_page, head_dim)
        self.kv_PL2GZK = torch.empty(1024, *page, dtype=dtype, device=META)

    @property
    def memory(self) -> StepMemory:
        return take_memory(self.room, device=META)

    def attend(self, kind: str, options: AttentionOptions) -> KernelCall:
        return attend_call(
            kind,
            self.query_THK,
            self.kv_PL2GZK,
            torch.empty_like(self.query_THK),
            self.memory,
            layer=3,
            options=options,
            num_programs=1,
        )


def _merge(model: _Model, options: AttentionOptions) -> KernelCall:
    out_THK: Tensor = model.query_THK
    return merge_call(out_THK, model.memory, options=options, num_programs=1)


def _store(model: _Model, options: AttentionOptions) -> KernelCall:
    return store_call(model.key_TGK, model.value_TGK, model.kv_PL2GZK, model.memory, layer=3)


def _store_odd(model: _Model, options: AttentionOptions) -> KernelCall:
    _, heads, head_dim = model.key_TGK.shape
    odd = torch.empty(NUM_ROWS, heads, head_dim + 1, dtype=torch.bfloat16, device=META)
    odd_TGK = odd[:, :, :head_dim]
    return store_call(odd_TGK, odd_TGK, model.kv_PL2GZK, model.memory, layer=3)


# Every second one for all shapes.
_KERNELS = (
    ("attend_single", "all"),
    ("attend_single", "plain"),
    ("attend_blocks", "all"),
    ("attend_blocks", "plain"),
    ("merge_splits", "all"),
    ("merge_splits", "plain"),
    ("store_pages", "plain"),
)
_BUILDERS: dict[str, _Build] = {
    "attend_single": lambda model, options: model.attend(SINGLE, options),
    "attend_blocks": lambda model, options: model.attend(BLOCKS, options),
    "merge_splits": _merge,
    "store_pages": _store,
}


def _bind(
    build: _Build, shape: ModelShape, dtype: torch.dtype, options: AttentionOptions
) -> Callable[[], KernelCall]:
    return lambda: build(_Model(shape, dtype), options)
