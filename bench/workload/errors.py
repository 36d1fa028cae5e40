"""What is wrong with a workload: settings, a file or a trace, named with the value and the limit.

Raised by everything in this folder; caught by the benches, which print it and stop.
"""

from __future__ import annotations


class WorkloadError(ValueError):
    """The caller's settings or file cannot be used as they are."""


def must(condition: bool, message: str) -> None:
    if not condition:
        raise WorkloadError(message)
