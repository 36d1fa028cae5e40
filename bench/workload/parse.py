"""Lines of a workload file to records: every field by name, of the right type, and no others.

Knows one line at a time; what lines must be together is file.py's business, which calls this. What
values may be is check.py's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from .check import check_adapters
from .errors import WorkloadError, must
from .records import Piece, WorkloadAdapter, WorkloadRequest

FORMAT = "lorry-workload"
VERSION = 1
_DIGEST = re.compile(r'(.*),"digest":"([0-9a-f]{64})"\}', re.DOTALL)
_HEADER = {
    "format": str,
    "version": int,
    "name": str,
    "seed": int,
    "recipe": str,
    "adapters": list,
    "num_requests": int,
    "digest": str,
}
_NEEDED = {"at_s": float, "adapter": str, "prompt": list, "num_new_tokens": int, "mark": str}
# Left out where they say nothing.
_OTHERS = {"session": int, "turn": int, "ttft_s": float, "tpot_s": float}
_SAID = {float: "a number", int: "a whole number", str: "a text", list: "a list"}


@dataclass(frozen=True, slots=True)
class Header:
    plain: str  # the line as far as its digest: what the digest is of
    digest: str
    name: str
    seed: int
    recipe: str
    adapters: tuple[WorkloadAdapter, ...]
    num_requests: int


def parse_header(where: str, line: str) -> Header:
    tree = _fields(where, line, _HEADER, {})
    must(tree["format"] == FORMAT, f"{where}: format {tree['format']!r}, not {FORMAT!r}")
    must(tree["version"] == VERSION, f"{where}: version {tree['version']}, known is {VERSION}")
    found = _DIGEST.fullmatch(line)
    if found is None:
        raise WorkloadError(f"{where}: does not end in its digest")
    adapters = tuple(_adapter(where, item) for item in tree["adapters"])
    try:
        check_adapters(adapters)
    except WorkloadError as error:
        raise WorkloadError(f"{where}: {error}") from error
    return Header(
        plain=found[1] + "}",
        digest=found[2],
        name=tree["name"],
        seed=tree["seed"],
        recipe=tree["recipe"],
        adapters=adapters,
        num_requests=tree["num_requests"],
    )


def parse_request(where: str, line: str) -> WorkloadRequest:
    tree = _fields(where, line, _NEEDED, _OTHERS)
    return WorkloadRequest(
        at_s=float(tree["at_s"]),
        adapter=tree["adapter"],
        prompt=tuple(_piece(where, item) for item in tree["prompt"]),
        num_new_tokens=tree["num_new_tokens"],
        session=tree.get("session", -1),
        turn=tree.get("turn", 0),
        ttft_s=float(tree.get("ttft_s", 0.0)),
        tpot_s=float(tree.get("tpot_s", 0.0)),
    )


def _fields(
    where: str, line: str, needed: dict[str, type], others: dict[str, type]
) -> dict[str, Any]:
    try:
        tree: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise WorkloadError(f"{where}: {error}") from error
    must(isinstance(tree, dict), f"{where}: no object")
    known = needed | others
    for name in needed:
        must(name in tree, f"{where}: no field {name}")
    for name, value in tree.items():
        must(name in known, f"{where}: field {name!r} is not known")
        must(_is(value, known[name]), f"{where}: {name} {value!r:.60} is not {_SAID[known[name]]}")
    return tree


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _adapter(where: str, value: object) -> WorkloadAdapter:
    item = cast("list[Any]", value) if isinstance(value, list) else []
    fits = len(item) == 3 and all(map(_is, item, (str, int, float)))
    must(fits, f"{where}: adapters: {value!r:.60} is no name, rank and weight")
    return WorkloadAdapter(item[0], item[1], float(item[2]))


def _piece(where: str, value: object) -> Piece:
    item = cast("list[Any]", value) if isinstance(value, list) else []
    fits = len(item) == 2 and all(map(_is, item, (int, int)))
    must(fits, f"{where}: prompt: {value!r:.60} is no seed and number of tokens")
    return Piece(item[0], item[1])
