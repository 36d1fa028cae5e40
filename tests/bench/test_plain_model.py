"""The bench's own loader: transformers' model, without its noise."""

from __future__ import annotations

import pytest
import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from lorry.bench.plain_model import load_plain
from lorry.bench.zoo.model import base_dir


def test_a_base_is_loaded_without_a_progress_bar(
    capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
):
    """A bar across a bench's lines, and in its log one line more for each time it is redrawn."""
    request.addfinalizer(disable_progress_bar)
    enable_progress_bar()  # as in a process that has loaded nothing yet
    model = load_plain(base_dir(), dtype=torch.float32)
    assert capfd.readouterr() == ("", "")
    assert model.dtype == torch.float32 and not model.training
