"""Catches an operation that would make the host wait for a GPU, on tensors of a CPU."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# A number of a tensor read by the host, and results whose size the host has to learn.
LOOKS = frozenset(
    {
        aten._local_scalar_dense,
        aten.is_nonzero,
        aten.nonzero,
        aten.masked_select,
        aten.equal,
        aten._unique2,
        aten.bincount,
        aten.repeat_interleave,
        aten.nonzero_numpy,
    }
)
# What makes a tensor of a list: on a GPU a copy from memory that is not pinned.
CREATIONS = frozenset({aten.lift_fresh, aten.lift_fresh_copy})
INDEXING = frozenset({aten.index, aten.index_put, aten.index_put_})
ONE_SIDE = ("/triton/", "kernels/lora/lists.py", "kernels/lora/arena.py")
WATCHED = LOOKS | CREATIONS | INDEXING


class Looks(TorchDispatchMode):
    """Notes every look. An index made of booleans is one too: its result has any size."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in WATCHED and _on_one_side():
            return func(*args, **(kwargs or {}))
        if packet in LOOKS or packet in CREATIONS or _by_booleans(packet, args):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _on_one_side() -> bool:
    """Triton's interpreter stands for the device, lists are made of tensors on the host: neither
    has anything to wait for.
    """
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in ONE_SIDE):
            return True
        frame = frame.f_back
    return False


def _by_booleans(packet: Any, args: tuple[Any, ...]) -> bool:
    if packet not in INDEXING:
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])
