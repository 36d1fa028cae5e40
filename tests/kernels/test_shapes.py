"""check_shapes: the suffixes of tensors' names, executed."""

import pytest
import torch

from lorry.kernels.shapes import check_shapes


def test_sizes_are_returned_by_letter() -> None:
    """Callers take sizes from the names; a digit and b1 must count as axes."""
    sizes = check_shapes(
        hidden_TD=torch.zeros(3, 5), kv_P2=torch.zeros(7, 2), cu_seqlens_b1=torch.zeros(4)
    )
    assert sizes == {"T": 3, "D": 5, "P": 7, "B": 3}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"hidden_TD": torch.zeros(3)}, "2 axes"),
        ({"a_TD": torch.zeros(3, 5), "b_TD": torch.zeros(4, 5)}, "axis T is 4, not 3"),
        ({"kv_P2": torch.zeros(7, 3)}, "its name fixes it"),
        ({"cu_b1": torch.zeros(4), "x_B": torch.zeros(4)}, "axis B is 4, not 3"),
        ({"hidden": torch.zeros(3)}, "no shape suffix"),
    ],
    ids=["axes", "letter", "digit", "b1", "no-suffix"],
)
def test_a_wrong_shape_is_named(tensors: dict[str, torch.Tensor], words: str) -> None:
    """A wrong shape that passes here would become wrong numbers in a kernel."""
    with pytest.raises(ValueError, match=words):
        check_shapes(**tensors)
