"""What is wrong with a compiled kernel. Pure: records in, sentences out.

Owns the limits. The compiler has none of them: it makes a binary that asks for more shared memory
than the chip has in silence, and one that spills or loads two bytes at a time too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .binary import Binary

# What one program may have on that chip (the opt-in limit of CUDA).
SHARED_LIMIT_BYTES = {80: 166_912, 90: 232_448}
# A load this wide fetches a single element of weights, activations or KV, which have 16 bits: lists
# and tables have 32, sums too.
TOO_NARROW_BYTES = 2
SIXTEEN_BIT = frozenset({"bf16", "f16", "i16"})


@dataclass(frozen=True, slots=True)
class CaseTerms:
    """What a case asks to be let off, from its CompileCase."""

    name: str
    stack_bytes: int = 0
    unaligned: str = ""


def find_faults(binary: Binary, terms: CaseTerms) -> tuple[str, ...]:
    """Each with its number; empty if the binary may be shipped."""
    faults: list[str] = []
    for what, found in (("STACK", binary.stack_bytes), ("LOCAL", binary.local_bytes)):
        if found > terms.stack_bytes:
            faults.append(f"{what} is {found} bytes a thread, {terms.stack_bytes} are allowed")
    limit = SHARED_LIMIT_BYTES[binary.arch]
    if binary.shared_bytes > limit:
        faults.append(f"shared memory is {binary.shared_bytes} bytes, sm_{binary.arch} has {limit}")
    if binary.scratch_bytes:
        faults.append(f"a launch needs {binary.scratch_bytes} bytes of global scratch")
    if not terms.unaligned:
        faults += _alignment_faults(binary)
    if binary.specialised:
        names = ", ".join(binary.specialised)
        faults.append(f"the binary depends on the value of {names}")
    return tuple(faults)


def _alignment_faults(binary: Binary) -> Iterable[str]:
    if binary.unaligned:
        yield f"{', '.join(binary.unaligned)} not at a multiple of 16 bytes"
    for load in binary.loads:
        if load.width_bytes == TOO_NARROW_BYTES:
            yield (
                f"{load.num_instructions} {load.how} of {load.width_bytes} bytes"
                f" ({load.element or 'unknown element'})"
            )


def find_lonely(cases: Sequence[CaseTerms]) -> list[str]:
    """Unaligned cases without an aligned one of the same kernel, configuration and dtype.

    The name's last part is the shape: `sgmv_shrink/decode/bf16/odd-width`.
    """
    aligned = {_family(case.name) for case in cases if not case.unaligned}
    return [case.name for case in cases if case.unaligned and _family(case.name) not in aligned]


def _family(name: str) -> str:
    return name.rpartition("/")[0]


def narrowest_bytes(binary: Binary) -> int | None:
    """The narrowest load of 16-bit elements; None where there is none (or only bulk copies)."""
    widths = [
        load.width_bytes
        for load in binary.loads
        if load.width_bytes and load.element in SIXTEEN_BIT
    ]
    return min(widths, default=None)
