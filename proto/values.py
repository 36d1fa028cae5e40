"""Values of a caller's options as the wire takes them, each refused by the name of its field.

protobuf's own errors name no field, and some of what it takes without one (bytes as numbers,
fractions) is nobody's meaning. Pure; knows no messages. Used by messages.py.
"""

from __future__ import annotations

import json
import operator
import reprlib
from collections.abc import Iterable, Mapping, Set
from typing import Any, NoReturn, SupportsFloat, SupportsIndex, cast

from .errors import InvalidRequest


def refuse(field: str, message: str) -> NoReturn:
    raise InvalidRequest("INVALID_ARGUMENT", message, field)


def text(field: str, value: object) -> str:
    if not isinstance(value, str):
        _refuse_kind(field, value, "text (str)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        refuse(
            field,
            f"{field} has a lone surrogate at character {error.start}, which UTF-8 cannot carry",
        )
    return value


def texts(field: str, value: object) -> list[str]:
    """One text is a list of one, not of its characters."""
    if isinstance(value, str):
        return [text(field, value)]
    return [text(field, item) for item in items(field, value, "text (str) or a list of texts")]


def flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        _refuse_kind(field, value, "True or False")
    return value


def count(field: str, value: object) -> int:
    return unsigned(field, value, 32)


def seed(field: str, value: object) -> int:
    return unsigned(field, value, 64)


def unsigned(field: str, value: object, bits: int) -> int:
    """A whole number of any library, but no fraction that would be cut."""
    limit = (1 << bits) - 1
    try:
        whole = operator.index(cast("SupportsIndex", value))
    except TypeError:
        refuse(field, f"{field} is {reprlib.repr(value)}; it must be an integer, 0 to {limit}")
    if not 0 <= whole <= limit:
        refuse(field, f"{field} is {whole}; it must be 0 to {limit}")
    return whole


def number(field: str, value: object) -> float:
    """Not of a text, which float() would read; limits are the server's to know."""
    if not isinstance(value, SupportsFloat | SupportsIndex):
        _refuse_kind(field, value, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(field, f"{field} is {reprlib.repr(value)}; it must be a number")


def ids(field: str, value: object, *, named: str = "") -> list[int]:
    """Token ids: a list, a tuple, an array; `named`: what a refused one is called."""
    listed = items(field, value, "a list of token ids")
    return [unsigned(named or field, token, 32) for token in listed]


def bias(field: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        _refuse_kind(field, value, "a mapping of token ids to numbers")
    pairs = cast("Mapping[object, object]", value).items()
    return {unsigned(field, token, 32): number(field, added) for token, added in pairs}


def json_object(field: str, value: object) -> str:
    """Empty for none."""
    if not isinstance(value, Mapping):
        _refuse_kind(field, value, "a mapping of names to values")
    given = cast("Mapping[Any, Any]", value)
    try:
        return json.dumps(dict(given), allow_nan=False) if given else ""
    except (TypeError, ValueError, RecursionError) as error:
        refuse(field, f"{field} cannot be written as JSON: {error}")


def items(field: str, value: object, wanted: str) -> list[object]:
    """In the order they have, so neither sets nor mappings; bytes are no list to their owner."""
    unlisted = isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set)
    if unlisted or not isinstance(value, Iterable):
        _refuse_kind(field, value, wanted)
    try:
        return list(cast("Iterable[object]", value))
    except TypeError:  # an array of no dimension
        _refuse_kind(field, value, wanted)


def _refuse_kind(field: str, value: object, wanted: str) -> NoReturn:
    refuse(field, f"{field} is {type(value).__name__}; it must be {wanted}")
