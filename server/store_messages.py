"""What the front end asks the store's process, and what it hears.

Every request carries an `id` of the caller's choice and gets exactly one answer with that id,
not always in the order of asking. The first thing the process says is `StoreReady` or
`StoreFailed`. Read answers while you send: pipes are short, and whoever only sends may wait
for a process that waits for him. Imports no torch: the front end reads this file.

| Request | value of Ok | errors worth expecting |
| --- | --- | --- |
| Configure | None | |
| BeginUpload | int: upload_id, the request's own id | AdapterRefused, AdapterTooLarge, Overloaded |
| UploadChunk | None | UploadCorrupt (more bytes than announced); the upload is gone then |
| CommitUpload | Stored | AdapterRefused, UploadCorrupt, AdapterTooLarge |
| AbortUpload | None | none: an unknown upload is gone already |
| GetCard | AdapterCard | AdapterNotFound, AdapterLoadFailed, AdapterRefused, AdapterTooLarge |
| ListCards | CardPage | |
| CountCards | int | |
| DeleteAdapter | AdapterKey | AdapterNotFound |
| PurgeAdapter | None | |
| Unproven | None | |
| Sweep | None | |

Before the first Configure, BeginUpload, GetCard and ListCards fail with EngineUnavailable. So do
UploadChunk and CommitUpload of an upload that is not open here: it was opened before a restart,
and has to be sent again. A card is refused when base or limits are others than at upload. Ids
are unique for the front end's life, not the process's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.image import ImageSpec
from ..adapters.key import AdapterCard, AdapterKey, CardPage, Stored
from .errors import LorryError


@dataclass(frozen=True, slots=True)
class Configure:
    """The engine is up: images are packed for it from now on. May be sent again."""

    id: int
    image_spec: ImageSpec
    max_pages: int | None = None  # an adapter with a larger image is refused; None: no limit
    fingerprint: str = ""  # of the base being served; empty: not known


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """Refused here, before a byte is sent, for all that its config alone decides."""

    id: int  # of the upload too
    tenant: str
    name: str
    config_json: bytes  # adapter_config.json, byte for byte
    size_bytes: int  # of adapter_model.safetensors
    sha256: str  # of adapter_model.safetensors, hex
    base_fingerprint: str = ""  # what the client says the adapter was trained on; empty: nothing


@dataclass(frozen=True, slots=True)
class UploadChunk:
    id: int
    upload_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CommitUpload:
    id: int
    upload_id: int


@dataclass(frozen=True, slots=True)
class AbortUpload:
    id: int
    upload_id: int


@dataclass(frozen=True, slots=True)
class GetCard:
    id: int
    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class ListCards:
    id: int
    tenant: str
    prefix: str = ""
    limit: int = 1000  # 1 to 1000
    after: str = ""  # only names greater than this


@dataclass(frozen=True, slots=True)
class CountCards:
    id: int
    tenant: str | None = None  # None: of all tenants


@dataclass(frozen=True, slots=True)
class DeleteAdapter:
    """The name is gone at once; its files stay until PurgeAdapter or a Sweep."""

    id: int
    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class PurgeAdapter:
    """No running request can reload this deleted or replaced adapter any more."""

    id: int
    key: AdapterKey


@dataclass(frozen=True, slots=True)
class Unproven:
    """The engine could not load this image: look at it again before the next card of it."""

    id: int
    key: AdapterKey


@dataclass(frozen=True, slots=True)
class Sweep:
    """Once after StoreReady: forget every replaced or deleted version but these."""

    id: int
    keep: tuple[AdapterKey, ...]  # the engine may still reload them; PurgeAdapter follows


Request = (
    Configure
    | BeginUpload
    | UploadChunk
    | CommitUpload
    | AbortUpload
    | GetCard
    | ListCards
    | CountCards
    | DeleteAdapter
    | PurgeAdapter
    | Unproven
    | Sweep
)


Value = int | AdapterCard | AdapterKey | Stored | CardPage | None


@dataclass(frozen=True, slots=True)
class Ok:
    id: int
    value: Value


@dataclass(frozen=True, slots=True)
class Failed:
    id: int
    error: Exception  # AdapterError or LorryError


Response = Ok | Failed


@dataclass(frozen=True, slots=True)
class StoreReady:
    """First message: the store is open."""

    num_adapters: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """First message of a store that cannot open; the process ends."""

    error: LorryError


Message = StoreReady | StoreFailed | Response
