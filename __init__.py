"""Lorry serves one base language model and thousands of LoRA adapters over gRPC.

Owns the version and the two clients' names, fetched only when asked for, so that
`import lorry` costs nothing. Knows no room besides `proto`.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]

if TYPE_CHECKING:
    from .proto.client import AsyncClient, Client


def __getattr__(name: str) -> object:
    if name in ("AsyncClient", "Client"):
        from .proto import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
