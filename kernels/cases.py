"""One entry of the compile check's list: a launch that is built when its turn comes.

Every operator's `configs.py` yields its own (`compile_cases`); the check walks them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .call import KernelCall


@dataclass(frozen=True, slots=True)
class CompileCase:
    """A kernel of one configuration, dtype and shape."""

    name: str  # kernel/configuration/dtype/shape: sgmv_shrink/decode/bf16/llama-8b-qkv
    build: Callable[[], KernelCall]  # on tensors without memory
    # Bytes a thread may spill to its stack; other than 0 only with a reason in the table.
    stack_bytes: int = 0
    # Why this shape cannot be loaded 16 bytes at a time ("a row of 895 elements"). Then there is a
    # case of the same name up to its last part, the shape, that can.
    unaligned: str = ""
