"""The header of a safetensors file, checked before anything of it is believed.

Owns the checks that need the header alone: its size, one plain JSON object, shapes and dtypes,
and that the tensors cover the data from the first byte to the last, each byte once. Allocates
no tensor. Knows nothing of LoRA; format.py asks for names and shapes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from .errors import AdapterRefused
from .json_object import read_object
from .names import shown

MAX_HEADER_BYTES = 8 << 20  # 1,000 modules take about 0.3 MiB
_LENGTH = struct.Struct("<Q")
_WIDTH_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_WHAT = "adapter_model.safetensors"
_METADATA = "__metadata__"
_MAX_DIM = 1 << 31
_MAX_NAME_CHARS = 1024  # PEFT searches names with patterns of its own
# What people upload under the name, told by its first bytes.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (adapter_model.bin)"),
    *((bytes([0x80, protocol]), "a pickle (adapter_model.bin)") for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)
_MAX_MAGIC_BYTES = max(len(magic) for magic, _ in _OTHER_FORMATS)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    dtype: str  # F32, F16, BF16
    shape: tuple[int, ...]  # one size (a bias of the base) or two
    start: int  # bytes from the end of the header
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file, by name.

    Raises:
        AdapterRefused: `field` is the tensor's name, or `weights` for the file as a whole.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_MAX_MAGIC_BYTES)
        prefix = start[: _LENGTH.size]
        if len(prefix) < _LENGTH.size:
            _refuse(f"has {size_bytes} bytes; a header alone takes {_LENGTH.size}")
        (header_bytes,) = _LENGTH.unpack(prefix)
        if header_bytes > MAX_HEADER_BYTES:
            _refuse_format(start)
            _refuse(f"says its header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} may be")
        data_bytes = size_bytes - _LENGTH.size - header_bytes
        if data_bytes < 0:
            _refuse(f"says its header has {header_bytes} bytes, but the file has {size_bytes}")
        file.seek(_LENGTH.size)
        header = read_object(file.read(header_bytes), what=f"header of {_WHAT}", field="weights")
    _check_metadata(header.pop(_METADATA, {}))
    entries = {name: _read_entry(name, value) for name, value in header.items()}
    _check_cover(entries, data_bytes)
    return entries


def _check_metadata(value: object) -> None:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in cast(Mapping[str, object], value).values()
    ):
        raise AdapterRefused(f"{_METADATA} must map texts to texts", field=_METADATA)


def _read_entry(name: str, value: object) -> TensorEntry:
    if len(name) > _MAX_NAME_CHARS:
        _refuse_tensor(
            name, f"has a name of {len(name)} characters; at most {_MAX_NAME_CHARS} may be"
        )
    if not isinstance(value, dict) or set(cast(Mapping[str, object], value)) != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        _refuse_tensor(name, "must have exactly dtype, shape and data_offsets")
    fields = cast(Mapping[str, object], value)
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in _WIDTH_BYTES:
        _refuse_tensor(name, f"has dtype {shown(dtype)}; allowed are {', '.join(_WIDTH_BYTES)}")
    shape = _ints(fields["shape"])
    if len(shape) not in (1, 2) or not all(0 < dim < _MAX_DIM for dim in shape):
        _refuse_tensor(name, f"has shape {shown(fields['shape'])}; two positive sizes are needed")
    offsets = _ints(fields["data_offsets"])
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        _refuse_tensor(name, f"has data_offsets {shown(fields['data_offsets'])}")
    needed_bytes = math.prod(shape) * _WIDTH_BYTES[dtype]
    if offsets[1] - offsets[0] != needed_bytes:
        _refuse_tensor(
            name,
            f"of shape {list(shape)} and dtype {dtype} takes {needed_bytes} bytes, but its "
            f"data_offsets span {offsets[1] - offsets[0]}",
        )
    return TensorEntry(dtype, shape, offsets[0], offsets[1])


def _ints(value: object) -> tuple[int, ...]:
    """Empty when it is anything but a list of integers."""
    items = cast(list[object], value) if isinstance(value, list) else []
    # bool is an int to Python, not to the format.
    if not all(type(item) is int for item in items):
        return ()
    return tuple(cast(list[int], items))


def _check_cover(entries: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """Sorted by start, every tensor begins where the one before it ended."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < position:
            _refuse_tensor(name, f"begins at byte {entry.start}, inside another tensor")
        if entry.start > position:
            _refuse_tensor(
                name, f"begins at byte {entry.start}, leaving a hole from byte {position}"
            )
        position = entry.end
    if position != data_bytes:
        _refuse(f"has {data_bytes} bytes of data, but its tensors take {position}")


def _refuse_format(start: bytes) -> None:
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            _refuse(
                f"is {what}; safetensors alone is read, and nothing is unpickled: save the adapter "
                "with save_pretrained(..., safe_serialization=True)"
            )


def _refuse(reason: str) -> NoReturn:
    raise AdapterRefused(f"{_WHAT} {reason}", field="weights")


def _refuse_tensor(name: str, reason: str) -> NoReturn:
    raise AdapterRefused(f"tensor {shown(name, 200)} {reason}", field=name[:256])
