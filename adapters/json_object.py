"""Reading one JSON object from bytes nobody vouches for.

Owns what plain `json.loads` lets through: duplicate keys, NaN, nesting without end. Used for
adapter_config.json and for the header of a safetensors file.
"""

from __future__ import annotations

import json
from typing import NoReturn

from .errors import AdapterRefused
from .names import shown


def read_object(data: bytes, *, what: str, field: str) -> dict[str, object]:
    """Raises AdapterRefused, naming `what`, unless `data` is one plain JSON object."""

    def refuse(reason: str) -> NoReturn:
        raise AdapterRefused(f"{what} {reason}", field=field)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                refuse(f"has the key {shown(key)} twice")
            found[key] = value
        return found

    try:
        value: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=lambda constant: refuse(f"holds {constant}, which is not JSON"),
        )
    except UnicodeDecodeError:
        refuse("is not UTF-8 text")
    except RecursionError:
        refuse("is nested too deeply")
    except ValueError as error:  # also a number with more digits than Python reads
        refuse(f"is not JSON: {error}")
    if not isinstance(value, dict):
        refuse(f"must be a JSON object, not {type(value).__name__}")
    return value
