"""Base weights that PEFT saved beside an adapter: they are the served base's, or it is refused.

PEFT writes the head or the embedding into the file when it was among the targets, or when told
to, and lays them over the base's on loading. Here the base is shared by all, so a weight that
was trained would be dropped in silence: each is compared with the hash of the base's own, in
bounded memory. Knows no sites and no LoRA factors; called by format.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import AdapterRefused
from .header import TensorEntry
from .image import BaseWeight, ImageSpec
from .names import PEFT_PREFIX, shown
from .packing import DTYPES

_CHUNK_ELEMENTS = 1 << 20  # read and cast at one time
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class SavedWeight:
    """A tensor of the file that claims to be the base's."""

    tensor: str  # its name in the file
    dtype: str  # float32, float16, bfloat16: as saved
    base: BaseWeight


def find_base_weights(
    entries: Mapping[str, TensorEntry], spec: ImageSpec
) -> tuple[SavedWeight, ...]:
    """Those of `entries` that have a counterpart in the base, of its shape.

    Raises:
        AdapterRefused: another shape than the base's, as of a vocabulary that has grown.
    """
    known = {base.name: base for base in spec.base_weights}
    found: list[SavedWeight] = []
    for name, entry in entries.items():
        base = known.get(_base_name(name))
        if base is None:
            continue
        if entry.shape != base.shape:
            raise AdapterRefused(
                f"tensor {shown(name, 200)} has shape {list(entry.shape)}, the base's "
                f"{base.name} has {list(base.shape)}: a base with other tokens than the one served",
                field=name[:256],
            )
        found.append(SavedWeight(name, _DTYPE_NAMES[entry.dtype], base))
    return tuple(found)


def check_base_weights(
    file: Any, saved: tuple[SavedWeight, ...], served_dtype: str
) -> tuple[str, ...]:
    """Notes on weights that are the base's after rounding only. `file` is open in safetensors.

    Raises:
        AdapterRefused: naming the tensor that differs from the base's.
    """
    notes: list[str] = []
    for weight in saved:
        own = dict(weight.base.hashes)
        # PEFT casts what it loads to the dtype of the model: alike then is alike for good.
        asked = {dtype for dtype in (served_dtype, weight.dtype) if dtype in own}
        digests = _digests(_chunks(file.get_slice(weight.tensor), weight.base.shape), asked)
        if served_dtype in own and digests[served_dtype] == own[served_dtype]:
            continue
        if weight.dtype in own and digests[weight.dtype] == own[weight.dtype]:
            notes.append(
                f"{weight.tensor} is the base's rounded to {weight.dtype}; served is the base's "
                f"own in {served_dtype}, PEFT would serve the rounded one"
            )
            continue
        raise AdapterRefused(
            f"tensor {weight.tensor} differs from the base's {weight.base.name}: it was trained, "
            "or belongs to another base; this server adds A and B to the base it has, and replaces "
            "nothing of it",
            field=weight.tensor,
        )
    return tuple(notes)


def _base_name(tensor_name: str) -> str:
    """Under which name the base's own would be listed; PEFT wraps what it adapts."""
    stem, _, part = tensor_name.removeprefix(PEFT_PREFIX).rpartition(".")
    module = stem.removesuffix(".base_layer")
    return module if part == "weight" else f"{module}.{part}"


def _chunks(rows: Any, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Whole rows; `shape` is the base's, so that one row cannot be larger than the base has."""
    row_elements = 1
    for size in shape[1:]:
        row_elements *= size
    step = max(1, _CHUNK_ELEMENTS // row_elements)
    for start in range(0, shape[0], step):
        yield rows[start : start + step]


def _digests(chunks: Iterator[Tensor], dtypes: set[str]) -> dict[str, str]:
    running = {dtype: hashlib.sha256() for dtype in dtypes}
    for chunk in chunks:
        for dtype, digest in running.items():
            cast = chunk.to(DTYPES[dtype]).contiguous()
            digest.update(cast.view(torch.uint8).numpy().tobytes())
    return {dtype: digest.hexdigest() for dtype, digest in running.items()}
