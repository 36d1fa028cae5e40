"""Moving an adapter's numbers into its page image.

Owns the one cast to the pool's dtype, its check and its error, and the copy of tiles to where
image.py planned them. Knows no files and no names of adapters; called by the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import AdapterRefused
from .image import ImageLayout, ImageSpec, matrix_tiles

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# By site index: A [rank, in_width] and B [out_width, rank], in the dtype of the upload.
Weights = Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PackedImage:
    pages: Tensor  # [num_pages, page_elements], the pool's dtype; padding is zero
    rounding_error: float  # largest absolute change of a weight by the cast


def pack_image(spec: ImageSpec, layout: ImageLayout, weights: Weights) -> Tensor:
    """The pages of `pack_measured` alone."""
    return pack_measured(spec, layout, weights).pages


def pack_measured(spec: ImageSpec, layout: ImageLayout, weights: Weights) -> PackedImage:
    """Cast each weight once and copy it to its tiles.

    Raises:
        AdapterRefused: a weight is finite as uploaded and infinite in the pool's dtype.
    """
    dtype = DTYPES[spec.dtype]
    image = torch.zeros(layout.num_pages * spec.page_elements, dtype=dtype)
    worst = 0.0
    for tiles in layout.sites:
        site = spec.sites[tiles.site]
        lora_a, lora_b = weights[tiles.site]
        for part, matrix, offsets in (
            ("lora_A", lora_a, tiles.a_offsets),
            ("lora_B", lora_b.T, tiles.b_offsets),
        ):
            rounded, error = _cast(f"{site.name}.{part}.weight", matrix, dtype)
            worst = max(worst, error)
            _copy_tiles(image, offsets, rounded, layout.tile_cols)
    return PackedImage(image.view(layout.num_pages, spec.page_elements), worst)


def _cast(name: str, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    if matrix.dtype == dtype:
        return matrix, 0.0
    rounded = matrix.to(dtype)
    # In fp32 both sides are exact, so the difference is the rounding and nothing else.
    error = float((rounded.float() - matrix.float()).abs().max())
    if error == float("inf"):
        largest = float(matrix.float().abs().max())
        raise AdapterRefused(
            f"{name} has a weight of magnitude {largest:g}, more than {_name(dtype)} can hold "
            f"({torch.finfo(dtype).max:g})",
            field=name,
        )
    return rounded, error


def _copy_tiles(image: Tensor, offsets: tuple[int, ...], matrix: Tensor, cols: int) -> None:
    rank, width = matrix.shape
    for offset, tile in zip(offsets, matrix_tiles(rank, width, cols), strict=True):
        home = image[offset : offset + tile.num_elements].view(tile.num_rows, tile.row_stride)
        home[:, : tile.num_cols] = matrix[
            tile.row : tile.row + tile.num_rows, tile.col : tile.col + tile.num_cols
        ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
