"""A PEFT directory on its way to the server: its two files, their size and hash, the chunks.

Reads adapter_config.json and adapter_model.safetensors and nothing else; judges neither (the
server does, and says which field). Knows no gRPC channel, no torch. Used by client.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from . import lorry_pb2 as pb
from .errors import AdapterDirectoryError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
CHUNK_BYTES = 1 << 20
# The header is one message and has to fit in one; a config of PEFT's has a few KiB.
MAX_CONFIG_BYTES = 4 << 20

ProgressCallback = Callable[[int, int], None]  # bytes handed over so far, bytes in all


class Parcel:
    """One adapter read from `directory`, named after it unless a name is given."""

    def __init__(
        self, directory: str | Path, name: str | None = None, *, base_fingerprint: str = ""
    ) -> None:
        """Reads the config and hashes the weights, which takes a second per GiB or so.

        Raises:
            AdapterDirectoryError: names the file that is missing or cannot be read.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise AdapterDirectoryError(f"{folder} is not a directory", str(folder))
        self.weights_path = _required(folder, WEIGHTS_FILE)
        config_path = _required(folder, CONFIG_FILE)
        try:
            config_json = _read_config(config_path)
            size_bytes, sha256 = _measure(self.weights_path)
        except OSError as error:
            raise _unreadable(error, folder) from error
        self.header = pb.UploadHeader(
            name=folder.resolve().name if name is None else name,
            config_json=config_json,
            size_bytes=size_bytes,
            sha256=sha256,
            base_fingerprint=base_fingerprint,
        )
        # Why the stream was cut short, if it was: gRPC would only log what a generator raises.
        self.failure: AdapterDirectoryError | None = None

    def requests(self, progress: ProgressCallback | None = None) -> Iterator[pb.UploadRequest]:
        """Header, then chunks of 1 MiB; `progress` hears of each once gRPC asks for the next.

        A file that shrinks or fails meanwhile ends the stream early and is kept in `failure`;
        the server refuses the short upload, so nothing of it is stored.
        """
        sent_bytes = 0
        total_bytes = self.header.size_bytes
        yield pb.UploadRequest(header=self.header)
        try:
            with self.weights_path.open("rb") as weights:
                while chunk := weights.read(CHUNK_BYTES):
                    yield pb.UploadRequest(chunk=chunk)
                    sent_bytes += len(chunk)
                    if progress is not None:
                        progress(sent_bytes, total_bytes)
        except OSError as error:
            self.failure = _unreadable(error, self.weights_path)
            return
        if sent_bytes != total_bytes:
            self.failure = AdapterDirectoryError(
                f"{self.weights_path} had {total_bytes} bytes when it was hashed and "
                f"{sent_bytes} when it was sent",
                WEIGHTS_FILE,
            )


def _required(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    if name == WEIGHTS_FILE and (folder / PICKLE_FILE).exists():
        raise AdapterDirectoryError(
            f"{folder} has {PICKLE_FILE}, a pickle, which can run code when read and is not "
            f"accepted; save the adapter as {WEIGHTS_FILE} "
            "(save_pretrained(..., safe_serialization=True))",
            PICKLE_FILE,
        )
    raise AdapterDirectoryError(f"{folder} has no {name}", name)


def _read_config(path: Path) -> bytes:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_CONFIG_BYTES:
        raise AdapterDirectoryError(
            f"{path} has {size_bytes} bytes; at most {MAX_CONFIG_BYTES} can be sent", CONFIG_FILE
        )
    return path.read_bytes()


def _measure(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of the file, without holding it in memory."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as weights:
        while chunk := weights.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _unreadable(error: OSError, path: Path) -> AdapterDirectoryError:
    name = str(error.filename or path)
    return AdapterDirectoryError(f"{name} cannot be read: {error.strerror or error}", name)
