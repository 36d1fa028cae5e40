"""`lorry bench scale`: what thousands of registered, and thousands of active adapters cost."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls."""
    from .command import main as command

    return command(argv)
