"""The operators whose kernels are shipped: the one list that the compile check walks.

To be called in a process whose Triton compiles: importing a kernel decorates it, and whether it is
interpreted is fixed by that.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...kernels.cases import CompileCase


def shipped_cases() -> Iterator[CompileCase]:
    """Every entry of every operator's table."""
    from ...kernels.attention.configs import compile_cases as attention_cases
    from ...kernels.handover.configs import compile_cases as handover_cases
    from ...kernels.lora.configs import compile_cases as lora_cases

    yield from lora_cases()
    yield from attention_cases()
    yield from handover_cases()
