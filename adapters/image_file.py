"""A packed image on disk: pages, the layout they follow, and a checksum over both.

Owns the file's form (safetensors with one tensor) and the way from the file into memory that the
caller names: page by page where it wants it, so that nothing is copied twice. The image is a cache:
it is written without fsync and proven by its checksum when it is read, so a file cut short by a
power failure is found and packed again. Written by the store, read by the host tier.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .image import ImageLayout, SiteTiles

_PAGES = "pages"
_LENGTH_BYTES = 8  # of the header's length, little-endian
_READ_BYTES = 8 << 20  # at a time: one call takes at most 2 GiB
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class ImageDamaged(Exception):
    """The file is missing, cut short or changed."""


@dataclass(frozen=True, slots=True)
class HostImage:
    """One adapter in memory of its own."""

    layout: ImageLayout
    pages: Tensor  # [num_pages, page_elements], the pool's dtype, contiguous


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A file whose header has been read; its pages are where `file` stands."""

    file: FileIO
    layout: ImageLayout
    num_pages: int
    page_elements: int
    dtype: torch.dtype
    metadata: dict[str, str]

    @property
    def size_bytes(self) -> int:
        return self.num_pages * self.page_elements * self.dtype.itemsize

    def read_into(self, parts: Iterable[Tensor]) -> None:
        """All pages, in their order, into these contiguous stretches of memory; then the proof.

        Raises:
            ImageDamaged: what is there now is not what was written.
        """
        checksum = zlib.crc32(self.metadata["layout"].encode())
        try:
            for memory in parts:
                checksum = self._read(_bytes_of(memory), checksum)
        except OSError as error:
            raise _unreadable(error) from error
        if self.metadata.get("crc32") != f"{checksum:08x}":
            raise ImageDamaged("its checksum does not match its bytes")

    def _read(self, part: memoryview, checksum: int) -> int:
        while part:
            count = self.file.readinto(part[:_READ_BYTES])
            if not count:
                raise ImageDamaged("the file is cut short")
            checksum = zlib.crc32(part[:count], checksum)
            part = part[count:]
        return checksum


def write_image(path: Path, layout: ImageLayout, pages: Tensor) -> None:
    text = json.dumps(asdict(layout))
    checksum = zlib.crc32(_bytes_of(pages.contiguous()), zlib.crc32(text.encode()))
    save_file({_PAGES: pages}, path, metadata={"layout": text, "crc32": f"{checksum:08x}"})


@contextmanager
def open_image(path: Path) -> Generator[OpenImage]:
    """The header, which says how much memory the pages take, before any is taken.

    Raises:
        ImageDamaged: with the reason; the file's size is not what its header says, too.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(error) from error
    with file:
        try:
            image = _open(file)
        except OSError as error:
            raise _unreadable(error) from error
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ImageDamaged(f"{type(error).__name__}: {error}") from error
        yield image


def read_image(path: Path) -> HostImage:
    """Into memory of its own, checked.

    Raises:
        ImageDamaged: with the reason.
    """
    with open_image(path) as image:
        pages = torch.empty((image.num_pages, image.page_elements), dtype=image.dtype)
        image.read_into((pages,))
        return HostImage(image.layout, pages)


def _open(file: FileIO) -> OpenImage:
    left_bytes = os.fstat(file.fileno()).st_size - _LENGTH_BYTES
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 0 < header_bytes <= left_bytes:
        raise ValueError(f"a header of {header_bytes} bytes in a file with {left_bytes} more")
    header = json.loads(file.read(header_bytes))
    metadata, tensor = header["__metadata__"], header[_PAGES]
    num_pages, page_elements = tensor["shape"]
    if not type(num_pages) is type(page_elements) is int:
        raise TypeError(f"pages of shape {tensor['shape']}")
    dtype = _DTYPES[tensor["dtype"]]
    size_bytes = math.prod((num_pages, page_elements, dtype.itemsize))
    # No sizes below one, and none that the file does not have: memory is taken by them.
    if min(num_pages, page_elements) < 1 or size_bytes != left_bytes - header_bytes:
        raise ValueError(
            f"pages of {size_bytes} bytes in a file with {left_bytes - header_bytes} of them"
        )
    if tensor["data_offsets"] != [0, size_bytes]:
        raise ValueError(f"pages at {tensor['data_offsets']} of {size_bytes} bytes")
    layout = _read_layout(json.loads(metadata["layout"]))
    return OpenImage(file, layout, num_pages, page_elements, dtype, metadata)


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


def _bytes_of(pages: Tensor) -> memoryview:
    flat: Any = pages.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _unreadable(error: OSError) -> ImageDamaged:
    # Not its text, which a client may read: that has the path in it.
    return ImageDamaged(
        f"the file cannot be opened or read ({error.strerror or type(error).__name__})"
    )
