"""`lorry bench slo`: policies under load on a live server, judged by SLO attainment."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls; imported late, so that the simulator loads only the figures."""
    from .command import main as command

    return command(argv)
