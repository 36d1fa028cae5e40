"""A launch as a value: run as it stands, in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from lorry.kernels.call import KernelCall
from lorry.tests.compile_builders import scale_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_call_runs_with_its_arguments_and_options(dtype: torch.dtype) -> None:
    """An option that one version's interpreter does not know, or a warning, stops every kernel."""
    x = torch.arange(256, device=DEVICE).to(dtype)
    out = torch.full((256,), -1.0, dtype=dtype, device=DEVICE)
    options = {"BLOCK": 256, "num_warps": 1, "num_stages": 2}
    KernelCall(scale_rows, (1,), (x, out, 100), options).run()
    assert torch.equal(out[:100], x[:100] * 2)
    assert (out[100:] == -1).all()
