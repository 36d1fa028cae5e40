"""`lorry bench throughput`: tokens per second of workload W beside transformers and PEFT."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """What `lorry bench` calls; imported late, so that a child process loads only its part."""
    from .command import main as command

    return command(argv)
