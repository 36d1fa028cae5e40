"""Statuses as the wire carries them, decoded into typed errors."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import grpc
import pytest

from lorry.proto.errors import (
    DETAILS_KEY,
    KIND_OF_CODE,
    AdapterDirectoryError,
    LorryClientError,
    Overloaded,
    ServerFault,
    from_rpc,
)
from lorry.tests.proto_builders import bad_request, queue_full


class FakeFailure:
    def __init__(
        self,
        code: grpc.StatusCode,
        details: str = "no",
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        self._parts = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return self._parts[2]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_every_status_has_a_type_that_keeps_its_code(code: grpc.StatusCode) -> None:
    """A status without a type would raise a KeyError in place of the server's sentence."""
    error = from_rpc(FakeFailure(code), "host:1")
    assert type(error) is KIND_OF_CODE.get(code.name, ServerFault)
    assert (error.code, error.message) == (code.name, "no")


def test_the_first_violated_field_is_the_field() -> None:
    """The field is what a form or a script shows the message beside."""
    status = bad_request("rank_pattern", "no")
    error = from_rpc(FakeFailure(status.code, "no", status.trailing_metadata), "host:1")
    assert (error.field, error.retry_after_s) == ("rank_pattern", None)


@pytest.mark.parametrize("blob", [b"", b"\xff\xff\xff", b"\x08\x01\x1a\x04junk"])
def test_unreadable_details_leave_the_sentence(blob: bytes) -> None:
    """A proxy's own details must not hide the server's message behind a decoding error."""
    failure = FakeFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [(DETAILS_KEY, blob)])
    error = from_rpc(failure, "host:1")
    assert isinstance(error, Overloaded)
    assert (error.message, error.field, error.retry_after_s) == ("full", "", None)


def test_errors_cross_a_process_boundary_with_their_fields() -> None:
    """A load generator's workers hand these to their parent."""
    status = queue_full()
    full = from_rpc(FakeFailure(status.code, "full", status.trailing_metadata), "host:1")
    for error in (full, AdapterDirectoryError("no file", "x")):
        copy: LorryClientError = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert copy.__dict__ == error.__dict__
        assert str(copy) == str(error)


@pytest.mark.parametrize(
    ("code", "words", "kept"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:5: Refused",
            "host:1: Refused",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "errors resolving h:1: [field:hostname lookup error:lookup failed: not found]",
            "host:1: not found",
        ),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Stream removed (Deadline Exceeded)", "host:1 had"),
        (grpc.StatusCode.UNAVAILABLE, "the server is draining", "the server is draining"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "waited 3 s for a page", "waited 3 s for a page"),
    ],
)
def test_grpcs_own_words_become_a_sentence_and_the_servers_stay(
    code: grpc.StatusCode, words: str, kept: str
) -> None:
    """The first four words of a transport error are no help; the server's sentence is."""
    message = from_rpc(FakeFailure(code, words), "host:1").message
    assert kept in message
    assert len(message) < 80
