"""One upload while its bytes arrive.

Owns a folder under incoming/, the running SHA-256 and the announced size. Nothing of it can be
seen by name; what is left after a crash is swept when the store opens. Called by the store.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from .errors import UploadCorrupt

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class Upload:
    """Not thread-safe: one sender writes, then finishes or aborts."""

    def __init__(
        self,
        folder: Path,
        *,
        tenant: str,
        name: str,
        config_json: bytes,
        size_bytes: int,
        sha256: str,
        base_fingerprint: str,
    ) -> None:
        self.folder = folder
        self.tenant = tenant
        self.name = name
        self.config_json = config_json
        self.size_bytes = size_bytes
        self.base_fingerprint = base_fingerprint  # as the client gave it; empty: not given
        self._sha256 = sha256.lower()
        self._digest = hashlib.sha256()
        self._received_bytes = 0
        folder.mkdir()
        self._file = (folder / WEIGHTS_FILE).open("xb")

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_FILE

    def write(self, data: bytes) -> None:
        """Raises UploadCorrupt, before writing, when more arrives than was announced."""
        if self._received_bytes + len(data) > self.size_bytes:
            raise UploadCorrupt(
                f"more than the announced {self.size_bytes} bytes arrived", field="size_bytes"
            )
        self._file.write(data)
        self._digest.update(data)
        self._received_bytes += len(data)

    def finish(self) -> str:
        """The content hash, once what arrived is what was announced; the config is beside it.

        Raises:
            UploadCorrupt: cut short, or another hash.
        """
        self._file.close()
        if self._received_bytes != self.size_bytes:
            raise UploadCorrupt(
                f"{self._received_bytes} bytes arrived of the announced {self.size_bytes}",
                field="size_bytes",
            )
        if self._digest.hexdigest() != self._sha256:
            raise UploadCorrupt(
                f"the bytes that arrived have SHA-256 {self._digest.hexdigest()}, announced was "
                f"{self._sha256}",
                field="sha256",
            )
        (self.folder / CONFIG_FILE).write_bytes(self.config_json)
        return content_hash(self.config_json, self._digest.digest())

    def abort(self) -> None:
        """Leave nothing behind; harmless when called twice or after the store took the files."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def hash_of(folder: Path) -> str:
    """The content hash of files that are kept, from their bytes as they are now."""
    config_json = (folder / CONFIG_FILE).read_bytes()
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return content_hash(config_json, hashlib.file_digest(file, "sha256").digest())


def content_hash(config_json: bytes, weights_sha256: bytes) -> str:
    """Of both files: the same weights under another config are another adapter."""
    config_sha256 = hashlib.sha256(config_json).digest()
    return hashlib.sha256(config_sha256 + weights_sha256).hexdigest()
