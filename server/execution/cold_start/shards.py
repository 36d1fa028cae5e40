"""How an errand's rows are shared out: neighbours together, no helper called for too few.

Pure. After CaraServe, which gives each core a profiled number of tokens. Called by helpers.py and
device_handover.py; the least number that is worth a helper comes from speed.py.
"""

from __future__ import annotations


def split_rows(num_rows: int, num_helpers: int, *, min_rows: int) -> list[tuple[int, int]]:
    """[start, end) for each helper that is called, as even as can be; all rows in their order."""
    num_parts = max(1, min(num_helpers, num_rows // max(1, min_rows)))
    ends = [num_rows * (part + 1) // num_parts for part in range(num_parts)]
    return list(zip([0, *ends], ends, strict=False))
