"""Global loads of a compiled kernel: how wide each is and what it fetches, from Triton's texts.

Owns the reading of PTX (width) and of TTGIR (element type); the two meet at the place in the
source that both name. Does not know which width is wanted: judge.py does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# `.loc 1 28 14` or `.loc 1 28 14, function_name $L__x, inlined_at 1 56 30`: what follows is from
# there.
_PTX_PLACE = re.compile(r"^\s*\.loc\s+\d+\s+(\d+)\s+(\d+)")
# `ld.global.L1::evict_last.v4.b32 {...}`; the modifiers' order is PTX's.
_PTX_LOAD = re.compile(r"\bld((?:\.[\w:]+)+)\s")
_PTX_TYPE = re.compile(r"[bufs](\d+)|bf16|f16x2")
# `cp.async.cg.shared.global [ %r + 0 ], [ %rd + 0 ], 0x10, 0x10;`: the third is the size.
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared[\w:.]*\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)")
_PTX_BULK = re.compile(r"\bcp\.async\.bulk\.(?:tensor\.)?[\w:.]*global")

_IR_LOAD = re.compile(
    r"\b(?:tt\.load|tt\.descriptor_load|tt\.descriptor_gather"
    r"|ttg\.async_copy_global_to_local|ttng\.async_tma_\w*copy_global_to_local)\b"
)
_IR_POINTER = re.compile(r"!tt\.ptr<(\w+)|!tt\.tensordesc<\s*(?:tensor<)?(?:\d+x)*(\w+)")
_IR_USED_PLACE = re.compile(r"loc\((#loc\d*)\)\s*$")
_IR_PLACE = re.compile(r"^(#loc\d*) = loc\((.*)\)\s*$")
_IR_NUMBERS = re.compile(r'^"[^"]*":(\d+):(\d+)')
_IR_INNER = re.compile(r"#loc\d*")

Place = tuple[int, int]  # line and column


@dataclass(frozen=True, slots=True, order=True)
class Load:
    """Instructions that are alike."""

    how: str  # ld, cp.async or bulk
    element: str  # bf16, f16, f32, i32; empty where the texts do not meet
    width_bytes: int  # of one thread's load; 0 for bulk, which a thread only starts
    num_instructions: int


def read_loads(ptx: str, ttgir: str) -> tuple[Load, ...]:
    """Every global load that the PTX names, alike ones counted together."""
    elements = _elements(ttgir)
    found: Counter[tuple[str, str, int]] = Counter()
    place: Place = (0, 0)
    # Each line of inline assembly is marked one line further down: its first mark is the true one.
    is_marked = is_inline = False
    for line in ptx.splitlines():
        if marked := _PTX_PLACE.match(line):
            if not (is_inline and is_marked):
                place = (int(marked[1]), int(marked[2]))
            is_marked = True
        elif "// begin inline asm" in line:
            is_inline, is_marked = True, False
        elif "// end inline asm" in line:
            is_inline = False
        elif load := _load_of(line):
            how, width_bytes = load
            found[how, elements.get(place, ""), width_bytes] += 1
    return tuple(sorted(Load(*key, num_instructions=number) for key, number in found.items()))


def _load_of(line: str) -> tuple[str, int] | None:
    """(how, bytes) if this line of PTX loads from global memory."""
    if copy := _PTX_COPY.search(line):
        return "cp.async", int(copy[1], 0)
    if _PTX_BULK.search(line):
        return "bulk", 0
    load = _PTX_LOAD.search(line)
    modifiers = load[1].split(".")[1:] if load else []
    if "global" not in modifiers:
        return None
    lanes = next((int(word[1:]) for word in modifiers if re.fullmatch(r"v\d", word)), 1)
    typed = _PTX_TYPE.fullmatch(modifiers[-1])
    if typed is None:
        raise ValueError(f"a load of unknown width: {line.strip()}")
    bits = int(typed[1]) if typed[1] else {"bf16": 16, "f16x2": 32}[modifiers[-1]]
    return "ld", lanes * bits // 8


def _elements(ttgir: str) -> dict[Place, str]:
    """What the loads of each place in the source fetch; a place with two types is left out."""
    places = _places(ttgir)
    found: dict[Place, set[str]] = {}
    for line in ttgir.splitlines():
        used = _IR_USED_PLACE.search(line)
        if used is None or not _IR_LOAD.search(line):
            continue
        pointer = _IR_POINTER.search(line)
        place = places.get(used[1])
        if pointer is not None and place is not None:
            found.setdefault(place, set()).add(pointer[1] or pointer[2])
    return {place: types.pop() for place, types in found.items() if len(types) == 1}


def _places(ttgir: str) -> dict[str, Place]:
    """`#loc7` -> line and column; a named or inlined place is the one it stands for."""
    texts: dict[str, str] = {}
    for line in ttgir.splitlines():
        if named := _IR_PLACE.match(line):
            texts[named[1]] = named[2]
    found = ((name, _numbers(name, texts)) for name in texts)
    return {name: place for name, place in found if place is not None}


def _numbers(name: str, texts: Mapping[str, str]) -> Place | None:
    for _ in texts:  # no chain is longer
        if name not in texts:
            return None
        if numbers := _IR_NUMBERS.match(texts[name]):
            return int(numbers[1]), int(numbers[2])
        # `"v"(#loc7)` or `callsite(#loc5 at #loc9)`: of an inlined function its own place comes
        # first, and that is what PTX gives too.
        inner = _IR_INNER.search(texts[name])
        if inner is None:
            return None
        name = inner[0]
    return None
