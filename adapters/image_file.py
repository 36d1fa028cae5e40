"""A packed image on disk: pages, the layout they follow, and a checksum over both.

Owns the file's form (safetensors with one tensor). The image is a cache: it is written without
fsync and proven by its checksum when it is read, so a file cut short by a power failure is
found and packed again. Written by the store, read by the host tier.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .image import ImageLayout, SiteTiles

_PAGES = "pages"


class ImageDamaged(Exception):
    """The file is missing, cut short or changed."""


@dataclass(frozen=True, slots=True)
class HostImage:
    """One adapter in host memory, ready to be copied page by page."""

    layout: ImageLayout
    pages: Tensor  # [num_pages, page_elements], the pool's dtype, contiguous

    @property
    def size_bytes(self) -> int:
        return self.pages.numel() * self.pages.element_size()


def write_image(path: Path, layout: ImageLayout, pages: Tensor) -> None:
    text = json.dumps(asdict(layout))
    save_file({_PAGES: pages}, path, metadata={"layout": text, "crc32": _checksum(text, pages)})


def read_image(path: Path) -> HostImage:
    """Into memory of its own, checked.

    Raises:
        ImageDamaged: with the reason.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # A copy: the tensor as opened is a view of the file, which may go.
            pages = file.get_tensor(_PAGES).clone()
        text = metadata["layout"]
        if metadata["crc32"] != _checksum(text, pages):
            raise ImageDamaged("its checksum does not match its bytes")
        return HostImage(_read_layout(json.loads(text)), pages)
    except OSError as error:
        # Not its text, which a client may read: that has the path in it.
        reason = error.strerror or type(error).__name__
        raise ImageDamaged(f"the file cannot be opened ({reason})") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ImageDamaged(f"{type(error).__name__}: {error}") from error


def _read_layout(value: Any) -> ImageLayout:
    return ImageLayout(
        num_pages=value["num_pages"],
        tile_cols=value["tile_cols"],
        sites=tuple(
            SiteTiles(
                site=site["site"],
                rank=site["rank"],
                scale=site["scale"],
                a_offsets=tuple(site["a_offsets"]),
                b_offsets=tuple(site["b_offsets"]),
            )
            for site in value["sites"]
        ),
        landed_pages=tuple(value["landed_pages"]),
        used_elements=value["used_elements"],
    )


def _checksum(text: str, pages: Tensor) -> str:
    flat: Any = pages.contiguous().view(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(memoryview(flat), zlib.crc32(text.encode())):08x}"
