"""Makes shape suffixes executable: `hidden_TD` must have two axes, and one T per call.

Owns the reading of a suffix: a capital letter is an axis of the key in kernels/README.md, a
digit is that fixed size, `b1` is B + 1. Called at the kernels' boundaries and by tests.
"""

from __future__ import annotations

import re
from functools import cache

from torch import Tensor

_AXIS = re.compile(r"b1|[A-Z]|[0-9]")


def check_shapes(**tensors: Tensor) -> dict[str, int]:
    """Check every tensor against the suffix of its name; returns the sizes of the letters.

    Raises:
        ValueError: names the tensor, its shape and the axis that does not agree.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        axes = _axes_of(name)
        if tensor.ndim != len(axes):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; its name says {len(axes)} axes"
            )
        for axis, size in zip(axes, tensor.shape, strict=True):
            _check_axis(name, tuple(tensor.shape), axis, size, sizes)
    return sizes


@cache  # names are few, and a step checks the same ones in every layer
def _axes_of(name: str) -> tuple[str, ...]:
    suffix = name.rpartition("_")[2]
    axes = _AXIS.findall(suffix)
    if not axes or "".join(axes) != suffix:
        raise ValueError(f"{name} ends in no shape suffix")
    return tuple(axes)


def _check_axis(
    name: str, shape: tuple[int, ...], axis: str, size: int, sizes: dict[str, int]
) -> None:
    if axis.isdigit():
        expected, because = int(axis), "its name fixes it"
    elif axis == "b1":
        expected, because = sizes.setdefault("B", size - 1) + 1, "b1 is B + 1"
    else:
        expected, because = sizes.setdefault(axis, size), f"{axis} was that before"
    if size != expected:
        raise ValueError(
            f"{name} has shape {shape}: axis {axis} is {size}, not {expected} ({because})"
        )
