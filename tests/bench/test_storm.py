"""What a storm takes for a leak, and that its seed decides it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lorry.bench.storm_asks import Ask, Scene, is_start_of
from lorry.bench.storm_audit import complaints
from lorry.bench.storm_events import SHARES, draw_events
from lorry.proto import lorry_pb2 as pb

FREE, KV, ADAPTER = pb.PAGE_KIND_FREE, pb.PAGE_KIND_KV, pb.PAGE_KIND_ADAPTER
CACHED = pb.PAGE_KIND_CACHED


def idle_stats(**overrides: object) -> pb.Stats:
    """Eleven pages, three of them an adapter's that nobody uses, and one of a cached prefix."""
    values: dict[str, object] = {
        "pages_total": 11,
        "memory": pb.Memory(pages_cached=1),
        "pages_free": 7,
        "pages_adapter": 3,
        "residents": [pb.ResidentAdapter(name="a", num_pages=3)],
        "pages": [
            pb.PageRun(kind=ADAPTER, count=2, owner="a"),
            pb.PageRun(kind=FREE, count=7),
            pb.PageRun(kind=CACHED, count=1),
            pb.PageRun(kind=ADAPTER, count=1, owner="a"),
        ],
    }
    return pb.Stats(**{**values, **overrides})


def test_an_idle_server_gives_no_cause_to_complain():
    """Broken: storms that fail without a leak."""
    assert complaints(idle_stats()) == []


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        ({"num_running": 1}, "num_running is 1"),
        ({"num_waiting": 2}, "num_waiting is 2"),
        ({"pages_kv": 1, "pages_free": 6}, "pages_kv is 1"),
        ({"pages_free": 6}, "are not 11 in all"),
        ({"memory": pb.Memory()}, "0 cached pages are not 11 in all"),
        ({"residents": [pb.ResidentAdapter(name="a", num_pages=3, num_users=1)]}, "1 users"),
        ({"residents": [pb.ResidentAdapter(name="a", num_pages=3, loading=True)]}, "loading"),
        ({"residents": [pb.ResidentAdapter(name="b", num_pages=3)]}, "residents"),
        ({"residents": []}, "residents"),
        ({"pages": [pb.PageRun(kind=KV, count=1, owner="17")]}, "owned by '17'"),
        ({"pages": [pb.PageRun(kind=FREE, count=10)]}, "the sums say"),
    ],
)
def test_every_leak_is_told(leak: dict[str, object], words: str):
    """Broken: an audit that is blind to one kind of leak, whatever the storm does."""
    assert any(words in sentence for sentence in complaints(idle_stats(**leak)))


def test_a_seed_draws_the_same_events_and_every_kind():
    """Broken: a failed event that cannot be repeated, or a kind that never happens."""
    asks = tuple(Ask(name, "x", 60, ignore_eos=True, tokens=(1,) * 60) for name in ("", "a"))
    scene = Scene(asks, {"a": Path("a")})
    events = draw_events(random.Random(3), scene, 40)
    assert events == draw_events(random.Random(3), scene, 40)
    assert events != draw_events(random.Random(4), scene, 40)
    assert {event.kind for event in events} == set(SHARES)


def test_a_wrong_or_late_token_is_no_start_of_the_answer():
    """Broken: streams that are cut off are not compared at all."""
    ask = Ask("", "x", 3, ignore_eos=False, tokens=(1, 2, 3))
    assert is_start_of((), ask) and is_start_of((1, 2), ask) and is_start_of((1, 2, 3), ask)
    assert not is_start_of((2,), ask)
    assert not is_start_of((1, 2, 3, 3), ask)
