"""`lorry bench step`: milliseconds of a decode step beside the time its bytes take at least."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls; imported late, so that the arithmetic is there without torch."""
    from .command import main as command

    return command(argv)
