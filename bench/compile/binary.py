"""What one compiled kernel needs and how it fetches: the record that is kept, shown and judged.

Owns the reading of cuobjdump's report and the JSON form. Pure; made by compiler.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from .loads import Load

_USAGE = re.compile(r"\bREG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Binary:
    """One case on one chip."""

    case: str  # CompileCase.name
    arch: int  # 80, 90
    num_warps: int
    num_registers: int  # of a thread
    stack_bytes: int  # of a thread: what did not fit its registers
    local_bytes: int  # of a thread, likewise
    shared_bytes: int  # of a program, as Triton asks for at launch
    scratch_bytes: int  # global memory that a launch would have to allocate
    loads: tuple[Load, ...]
    # Tensors that do not begin at a multiple of 16 bytes: Triton makes another binary for them.
    unaligned: tuple[str, ...]
    # Plain integers whose value Triton looks at: another value may mean another binary.
    specialised: tuple[str, ...]
    # What it says of the order of memory, as PTX has it and in that order.
    orders: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Binary:
        fields = dict(document)
        fields["loads"] = tuple(Load(**load) for load in fields["loads"])
        fields["unaligned"] = tuple(fields["unaligned"])
        fields["specialised"] = tuple(fields["specialised"])
        fields["orders"] = tuple(fields["orders"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Usage:
    num_registers: int
    stack_bytes: int
    local_bytes: int


def read_usage(report: str) -> Usage:
    """From `cuobjdump --dump-resource-usage`, the largest where a binary has several functions.

    Raises:
        ValueError: the report names no function.
    """
    found = [tuple(int(number) for number in match.groups()) for match in _USAGE.finditer(report)]
    if not found:
        raise ValueError(f"no function in cuobjdump's report: {report[:200]!r}")
    return Usage(*(max(column) for column in zip(*found, strict=True)))
