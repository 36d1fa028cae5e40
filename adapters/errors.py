"""What can be wrong with an adapter, as the client who sent it must hear it.

AdapterError                  base of the tree; caused by the client, mapped to a status in rpc
├── AdapterRefused            the files cannot be applied exactly: names field, value and limit
│   └── UploadCorrupt         the bytes that arrived are not the bytes announced
├── AdapterNotFound           no such name in this tenant (another tenant's counts as none)
├── AdapterTooLarge           more bytes, pages or rank than a configured limit
└── AdapterLoadFailed         stored well, but its image could not be brought into the pool

All cross a process boundary by pickle with their fields; `fields()` gives them for the wire.
NotConfigured is outside the tree: nobody's fault, and over once the engine is up.
"""

from __future__ import annotations


class AdapterError(Exception):
    """Base: `field` is the place in the upload or request, `message` the whole sentence."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__))


class AdapterRefused(AdapterError):
    """`field` names the config field or tensor; the message says value and what is allowed."""


class UploadCorrupt(AdapterRefused):
    """Cut short, too long, or another hash than announced."""


class AdapterNotFound(AdapterError):
    """`name` is the adapter asked for."""

    def __init__(self, message: str, *, field: str = "adapter", name: str = "") -> None:
        super().__init__(message, field=field)
        self.name = name


class AdapterTooLarge(AdapterError):
    """`value` and `limit` are in `unit` (bytes, pages, ranks)."""

    def __init__(
        self, message: str, *, field: str = "", value: int = 0, limit: int = 0, unit: str = ""
    ) -> None:
        super().__init__(message, field=field)
        self.value = value
        self.limit = limit
        self.unit = unit


class AdapterLoadFailed(AdapterError):
    """`name` is the adapter; the disk, not the client, is at fault."""

    def __init__(self, message: str, *, field: str = "adapter", name: str = "") -> None:
        super().__init__(message, field=field)
        self.name = name


class NotConfigured(Exception):
    """The engine has not yet said how its pages look."""


def _rebuild(kind: type[AdapterError], message: str, state: dict[str, object]) -> AdapterError:
    error = kind(message)
    error.__dict__.update(state)
    return error
