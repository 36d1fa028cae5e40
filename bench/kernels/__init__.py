"""`lorry bench kernels`: the LoRA of a layer beside the ways that others compute it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls; imported late, so that pure parts load without torch."""
    from .command import main as command

    return command(argv)
