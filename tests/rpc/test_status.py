"""Every error of both trees has a status, and crosses a process with its fields."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import status_pb2

from lorry.adapters.errors import AdapterError, AdapterNotFound, AdapterTooLarge
from lorry.server.errors import EngineUnavailable, LorryError, Overloaded
from lorry.server.rpc import status


def tree(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


KINDS = [
    kind
    for root in (LorryError, AdapterError)
    for kind in tree(root)
    if kind.__module__.startswith("lorry.server.") or kind.__module__.startswith("lorry.adapters.")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_has_its_own_entry_and_survives_pickle(kind: type[LorryError]):
    """Broken: a new error leaves as its parent's status, or loses its fields on the way."""
    assert kind in status.TABLE
    error = pickle.loads(pickle.dumps(kind("what and why", field="somewhere")))
    assert type(error) is kind
    assert (error.message, error.field, str(error)) == ("what and why", "somewhere", "what and why")
    answer = status.answer_for(error)
    assert answer.message == "what and why"
    assert answer.code is not grpc.StatusCode.OK
    for _, blob in answer.trailers:
        assert status_pb2.Status.FromString(blob).code == answer.code.value[0]


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after_s=7.0),
        EngineUnavailable("down", retry_after_s=7.0),
        AdapterNotFound("none", name="x"),
        AdapterTooLarge("much", value=3, limit=2, unit="pages"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_own_fields_survive_pickle(error: LorryError):
    """Broken: a retry time or a limit falls back to its default between two processes."""
    assert pickle.loads(pickle.dumps(error)).__dict__ == error.__dict__


def test_a_bug_is_internal_and_says_nothing_of_the_inside():
    """Broken: a traceback or a path of the server reaches a client."""
    answer = status.answer_for(ZeroDivisionError("/secret/path"))
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "secret" not in answer.message


def test_a_long_message_fits_grpcs_trailers():
    """Broken: an error that lists a thousand modules arrives as a broken connection."""
    answer = status.answer_for(AdapterTooLarge("x" * 100_000, field="f"))
    assert sum(len(blob) for _, blob in answer.trailers) + len(answer.message) < 8192


def test_without_the_details_packages_code_and_message_still_go_out(
    monkeypatch: pytest.MonkeyPatch,
):
    """Broken: a machine with grpcio alone answers errors with an import error."""
    monkeypatch.setitem(sys.modules, "grpc_status", None)
    assert not status.has_details()
    answer = status.answer_for(Overloaded("full"))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.trailers == ()
