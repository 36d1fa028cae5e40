"""The parts of a bench: what one that fails leaves behind, and what it does not hide."""

from __future__ import annotations

import pytest

from lorry.bench.attempts import Attempts
from lorry.tests.fakes import FakeClock


def make_attempts(wanted: tuple[str, ...] = ("a", "b")) -> tuple[Attempts, list[str], FakeClock]:
    told, clock = list[str](), FakeClock()
    attempts = Attempts(
        ("a", "b", "c"), wanted=wanted, ends=(OSError,), tell=told.append, now_s=clock.now_s
    )
    return attempts, told, clock


def test_a_part_that_fails_stops_no_other():
    """An hour of the parts before it would be lost, or it would pass as one that was left out."""
    attempts, told, clock = make_attempts()

    def fail() -> int:
        clock.advance(3.0)
        raise OSError("no room")

    assert attempts.attempt("a", fail) is None
    assert attempts.attempt("b", lambda: 7) == 7
    assert attempts.failed == ["a: no room"]
    assert attempts.not_run == {"a": "failed: no room", "c": "left out by --only"}
    assert attempts.took_s == {"a": 3.0, "b": 0.0}
    assert told == ["a: 3 s", "b: 0 s"]


def test_a_part_that_is_not_wanted_does_not_run():
    """`--only` would take as long as all."""
    attempts, told, _ = make_attempts(("b",))
    assert attempts.attempt("a", lambda: 1 // 0) is None
    assert (attempts.failed, attempts.took_s, told) == ([], {}, [])


def test_a_bug_ends_the_bench():
    """Caught as a part's failure it would be one line among figures."""
    attempts, _, _ = make_attempts()
    with pytest.raises(ZeroDivisionError):
        attempts.attempt("a", lambda: 1 // 0)
    assert attempts.failed == []
