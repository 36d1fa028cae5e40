"""A client in a process of its own, so that it can be killed in the middle of an answer.

Writes a line for every piece that arrives. Started by storm_events.py, and killed by it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ..proto.client import Client


def main(argv: Sequence[str]) -> int:
    """`argv`: the address, then the prompt and the options of `generate` as JSON."""
    address, asked = argv
    options = json.loads(asked)
    with Client(address, timeout_s=60) as client:
        for _ in client.generate(options.pop("prompt"), **options):
            sys.stdout.write("piece\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
