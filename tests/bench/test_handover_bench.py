"""The bench of the hand-over, on small numbers in the interpreter: its parts work, its times say
nothing.
"""

import pytest
import torch

from lorry.bench.handover import Size, World, main, measure
from lorry.tests.helper_builders import ThreadHelper
from lorry.tests.kernels_builders import INTERPRETED

pytestmark = INTERPRETED


def test_a_row_for_each_size_and_a_look() -> None:
    """What was not right is not timed, and what was timed is there."""
    size = Size(32, (16, 8), rank=4, rows=(1, 3), repeats=1, looks=3, page_elements=1024)
    rows, look_us = measure(
        World(size, torch.device("cpu"), torch.float32), (0,), spawn=ThreadHelper
    )
    assert [row.num_rows for row in rows] == [1, 3]
    assert all(min(row.send_us, row.add_us, row.there_and_back_us) > 0 for row in rows)
    assert all(row.largest_error < 1e-4 for row in rows)
    assert look_us > 0


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Times of interpreted kernels would be read as a GPU's."""
    assert main([]) == 2
    assert "nothing was run" in capsys.readouterr().err
