"""What an adapter may be called.

A name is a label, never a path: files are found by content hash alone, so no name can reach
out of the store. The rule still keeps names to what is safe in a shell, a URL and a log line.
"""

from __future__ import annotations

import re

from .errors import AdapterRefused

MAX_NAME_CHARS = 128
# What PEFT puts before a module's name: its own wrapper, and the base inside it.
PEFT_PREFIX = "base_model.model."
_RULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


def check_name(name: str, *, field: str = "name") -> None:
    """Raises AdapterRefused when `name` is not one."""
    if len(name) > MAX_NAME_CHARS:
        raise AdapterRefused(
            f"{field} has {len(name)} characters; at most {MAX_NAME_CHARS} are allowed",
            field=field,
        )
    if not _RULE.fullmatch(name):
        raise AdapterRefused(
            f"{field} {shown(name)} is not a name: 1 to {MAX_NAME_CHARS} letters, digits, '.', "
            "'_' or '-', not beginning with '.' or '-'",
            field=field,
        )


def shown(value: object, limit: int = 120) -> str:
    """A value for a message: quoted, one line, cut when long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
