"""A folder that PEFT saved, taken into a store in this process: the way of an upload, without one.

Used by the benches that drive an engine or a runner without a server.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from ..adapters.key import DEFAULT_TENANT, AdapterCard
from ..adapters.store import AdapterStore


def put_folder(store: AdapterStore, name: str, folder: Path) -> AdapterCard:
    """Raises AdapterError as an upload is refused."""
    weights = (folder / "adapter_model.safetensors").read_bytes()
    upload = store.begin(
        tenant=DEFAULT_TENANT,
        name=name,
        config_json=(folder / "adapter_config.json").read_bytes(),
        size_bytes=len(weights),
        sha256=sha256(weights).hexdigest(),
    )
    upload.write(weights)
    return store.commit(upload).card
