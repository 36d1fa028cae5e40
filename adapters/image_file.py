"""A packed image on disk: pages, the layout they follow, and checksums over both.

Owns the file's form (safetensors with one tensor) and the way from the file into memory that the
caller names: page by page where it wants it, so that nothing is copied twice. The image is a cache:
it is written without fsync and proven by its checksums when it is read, so a file cut short by a
power failure is found and packed again. There is one for the layout, and one for the end of every
group of layers, over all before it: what is proven may be used while the rest is still being read.
Written by the store, read by the host tier.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .image import ImageLayout, SiteTiles, layer_groups
from .slab import runs_of

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
    """A file whose header has been read, and whose layout is proven; its pages are where `file`
    stands.
    """

    file: FileIO
    layout: ImageLayout
    num_pages: int
    page_elements: int
    dtype: torch.dtype
    checksums: tuple[int, ...]  # of the layout; then at the end of each group, over all before it

    @property
    def size_bytes(self) -> int:
        return self.num_pages * self.page_elements * self.dtype.itemsize

    def read_groups(self, memory: Tensor, cells: Sequence[int]) -> Iterator[int]:
        """All pages, in their order, into these cells of `memory`, group of layers by group;
        yields how many layers are there and proven. What lies in the cells of later ones is nothing
        yet. Once; to the end, or the rest is not read.

        Raises:
            ImageDamaged: what is there now is not what was written.
        """
        checksum, done = self.checksums[0], 0
        for (layer, end), proof in zip(layer_groups(self.layout), self.checksums[1:], strict=True):
            try:
                for first, count in runs_of(cells[done:end]):
                    checksum = self._read(_bytes_of(memory[first : first + count]), checksum)
            except OSError as error:
                raise _unreadable(error) from error
            if checksum != proof:
                raise ImageDamaged(f"its checksum does not match its bytes up to layer {layer}")
            done = end
            yield layer + 1

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
    checksums, done, home = [zlib.crc32(text.encode())], 0, pages.contiguous()
    for _, end in layer_groups(layout):
        checksums.append(zlib.crc32(_bytes_of(home[done:end]), checksums[-1]))
        done = end
    proofs = " ".join(f"{checksum:08x}" for checksum in checksums)
    save_file({_PAGES: pages}, path, metadata={"layout": text, "crc32": proofs})


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
        for _ in image.read_groups(pages, range(image.num_pages)):
            pass  # nothing is used before all of it is proven
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
    checksums = tuple(int(text, 16) for text in metadata["crc32"].split(" "))
    # Before anybody goes by it: it says where in memory the numbers lie.
    if zlib.crc32(metadata["layout"].encode()) != checksums[0]:
        raise ValueError("the checksum of its layout does not match")
    layout = _read_layout(json.loads(metadata["layout"]))
    groups = tuple(layer_groups(layout))
    if [layout.num_pages, *(end for _, end in groups[-1:])] != [num_pages, num_pages]:
        raise ValueError(f"a layout of {layout.num_pages} pages for {num_pages}")
    # Files of an older form have one, over all.
    if len(checksums) != 1 + len(groups):
        raise ValueError(f"{len(checksums)} checksums for {len(groups)} groups of layers")
    return OpenImage(file, layout, num_pages, page_elements, dtype, checksums)


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
