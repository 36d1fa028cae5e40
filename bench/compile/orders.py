"""What a compiled kernel says of the order of memory: barriers, fences, acquires and releases.

Owns the reading of PTX for them, in their order in the text. Does not know which are wanted: where
other processes read what a kernel writes, that kernel's test does.
"""

from __future__ import annotations

import re

# `atom.global.acq_rel.sys.add.u32`, `ld.acquire.sys.global.b64`, `bar.sync`, `fence.acq_rel.sys`.
_KINDS = r"(?:atom|red|ld|st|fence|membar|bar|barrier)"
_INSTRUCTION = re.compile(rf"^\s*(?:@!?%?\w+\s+)?({_KINDS}[.][\w.:]+)")
_SAYS_SO = re.compile(r"^(?:bar|barrier|fence|membar)[.]|[.](?:acquire|release|acq_rel)[.]")


def read_orders(ptx: str) -> tuple[str, ...]:
    """The instructions without their operands; equal neighbours once."""
    found: list[str] = []
    for line in ptx.splitlines():
        named = _INSTRUCTION.match(line)
        if named and _SAYS_SO.search(named[1]) and (not found or found[-1] != named[1]):
            found.append(named[1])
    return tuple(found)
