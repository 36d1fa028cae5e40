"""A model as transformers itself loads it: what benches compare with, and make adapters for.

The one place where a bench loads a base, so that none of them shows transformers' progress bar
between its lines. The server's own loader is server/execution/model.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar


def load_plain(base: Path, *, dtype: torch.dtype, **options: Any) -> Any:
    """On a CPU, ready to answer. `options`: further ones of `from_pretrained`."""
    disable_progress_bar()
    loader: Any = AutoModelForCausalLM
    return loader.from_pretrained(base, dtype=dtype, **options).eval()
