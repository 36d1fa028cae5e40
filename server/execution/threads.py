"""How many threads the CPU device computes with.

Owns the automatic choice behind `--threads 0`. Torch splits every product over all threads and
waits for them; a model whose products are small then spends its step waiting. Called once by
the runner, after the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...adapters.image import Site

# Multiply-adds of a full decode step's widest product that are worth a second thread. A guess:
# at 3 M a second thread made everything several times slower (bench/LOG.md, 2026-11-20), and a
# model of useful size has 20 M and more.
WORTH_SHARING = 16_000_000


def choose_num_threads(
    asked: int, *, num_cores: int, max_running: int, sites: Sequence[Site]
) -> int:
    """`asked` threads; for 0 all cores, or one where the products are too small to share."""
    if asked:
        return asked
    widest = max(site.in_width * site.out_width for site in sites)
    return num_cores if max_running * widest >= WORTH_SHARING else 1
