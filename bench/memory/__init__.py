"""`lorry bench memory`: waste, and the economy against its baselines, simulated and live."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls."""
    from .command import main as command

    return command(argv)
