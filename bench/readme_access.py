"""The README's table of who may call what: read off the one table that decides it.

Owns nothing but how it is drawn. Called by readme.py.
"""

from __future__ import annotations

from ..server.rpc.access import NEEDS


def render_access() -> str:
    lines = ["| call | asks for |", "| --- | --- |"]
    for method, needed in NEEDS.items():
        service, _, name = method.removeprefix("/").partition("/")
        call = f"{service.rpartition('.')[2]}.{name}"
        lines.append(f"| `{call}` | {'nothing' if needed is None else f'`{needed.word}`'} |")
    return "\n".join(lines)
