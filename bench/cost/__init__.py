"""`lorry bench cost`: how well the cost model predicts steps it has not seen, and by what."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls."""
    from .command import main as command

    return command(argv)
