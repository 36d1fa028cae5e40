"""Options that several commands share, and how a size in bytes is written on the command line.

The one place where the command line reads the environment (`LORRY_ADDRESS`). Used by cli.py,
cli_serve.py and cli_adapter.py.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

DEFAULT_ADDRESS = "127.0.0.1:50051"  # as proto/transport.py has it, which imports grpc

# A server that does not answer a short question in this time is stuck.
CALL_TIMEOUT_S = 60.0

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")

Address = Annotated[
    str,
    typer.Option(envvar="LORRY_ADDRESS", metavar="HOST:PORT", help="Server to talk to."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")
]


def parse_size(value: str | int) -> int:
    """Bytes of `512MiB`, `1.5GiB`, `4096`; units are binary and written in full."""
    if isinstance(value, int):
        return value
    match = SIZE.fullmatch(value.strip())
    if match is None or match[2] not in UNITS:
        raise typer.BadParameter(
            f"{value!r} is not a size; write bytes or a number with KiB, MiB, GiB or TiB"
        )
    number, unit = match[1], UNITS[match[2]]
    return int(float(number) * unit) if "." in number else int(number) * unit


def write_size(num_bytes: int) -> str:
    """The shortest form that `parse_size` reads back exactly."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes and num_bytes % UNITS[unit] == 0:
            return f"{num_bytes // UNITS[unit]}{unit}"
    return str(num_bytes)
