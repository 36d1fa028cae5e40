"""`lorry bench sim`: the real planner and pool around a fake runner, on a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls."""
    from .command import main as command

    return command(argv)
