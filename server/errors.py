"""What can go wrong with a request, who caused it, and who hears of it.

LorryError                    base of the tree; each class has one gRPC status (rpc/status.py)
├── InvalidRequest            the client: a field is wrong; names field, value and limit
│   └── RequestTooLarge       the client: could never fit, with the arithmetic
├── Unauthenticated           the client: no token that this server knows came with the call
├── PermissionDenied          the client: the role of its token may not call this
├── TokensUnreadable          the operator: the file of tokens cannot be read; nobody is let in
├── Overloaded                nobody: the queue is full; says when to come back
│   └── GivenUp               nobody: it waited too long for its bound; says when to come back
├── ClientTooSlow             the client: it does not read what it asked for; its call is ended
├── DeadlineExceeded          the client's deadline passed while waiting or running
├── Draining                  the operator: the server is stopping, try another
├── EngineUnavailable         the engine died or is not up yet; it is being restarted
├── ModelRefused              the operator: this model cannot be served exactly; ends the start
├── ConfigError               the operator: a flag is wrong; ends the start
└── InternalError             us: a bug; the log has the rest

What is wrong with an adapter's files has a tree of its own in adapters/errors.py.
All cross a process boundary by pickle with their fields.
"""

from __future__ import annotations


class LorryError(Exception):
    """Base: `message` is the whole sentence, `field` the place in the request or the flag."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__))


class InvalidRequest(LorryError):
    """A field of the request is wrong."""


class RequestTooLarge(InvalidRequest):
    """Needs more than the server has, however long it waits."""


class Unauthenticated(LorryError):
    """No token came with the call, or none that this server knows; never says which."""


class PermissionDenied(LorryError):
    """The token is known and its role is not enough."""


class TokensUnreadable(LorryError):
    """`retry_after_s`: when the file is looked at again."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class Overloaded(LorryError):
    """`retry_after_s`: when a place is likely to be free."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class GivenUp(Overloaded):
    """Its first token would have come later than it asked for, so it is not computed at all."""


class ClientTooSlow(LorryError):
    """The client does not read what it asked for; the sentence names the limit."""


class DeadlineExceeded(LorryError):
    """The client's deadline passed before the answer was whole."""


class Draining(LorryError):
    """The server is stopping and takes no new work."""


class EngineUnavailable(LorryError):
    """`retry_after_s`: about when the engine is back."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class ModelRefused(LorryError):
    """The model cannot be served exactly."""


class ConfigError(LorryError):
    """`field` is the flag."""


class InternalError(LorryError):
    """A bug of ours."""


def _rebuild(kind: type[LorryError], message: str, state: dict[str, object]) -> LorryError:
    error = kind(message)
    error.__dict__.update(state)
    return error
