"""`lorry bench coldstart`: a cold adapter's first token, by its way and beside a warm one's."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls."""
    from .command import main as command

    return command(argv)
