"""How far a result in a narrow dtype may be from fp32's: one table per dtype, loosened by nothing.

The largest difference over the largest value expected. Read by the tests of every kernel.
"""

from __future__ import annotations

import torch

# Against the same inputs computed in fp32.
RELATIVE_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """NaN anywhere makes it NaN, which is above no limit and below none: compare with `<=`."""
    difference = (ours.double() - theirs.double()).abs().max()
    return float(difference / theirs.double().abs().max())
