"""Who is read next, who crosses next, and that every load ends once."""

from __future__ import annotations

import random

from lorry.adapters.host_tier import HeldImage
from lorry.server.execution.load_queue import Load, LoadQueue
from lorry.tests.link_builders import make_image, make_named_card, make_order


def make_load(load_id: int, name: str, image: HeldImage | None = None) -> Load:
    return Load(make_order(load_id, (0, 1, 2, 3, 4), name), 0.0, image=image)


def next_name(queue: LoadQueue) -> str:
    read = queue.next_read()
    return "" if read is None else read.card.key.name


def test_reads_go_by_order_of_start_and_hints_come_last() -> None:
    """Who waits longest would wait for a guess about somebody else."""
    queue = LoadQueue(max_hints=1)
    queue.want([make_named_card(name) for name in "xyz"], {make_named_card("x").key})
    for load_id, name in enumerate("bac"):
        queue.add(make_load(load_id, name))
    assert [next_name(queue) for _ in range(5)] == ["b", "a", "c", "y", ""]


def test_a_hint_spares_what_is_wanted_sooner_and_the_next_waits_for_it() -> None:
    """All readers would be busy with guesses when an order comes."""
    queue = LoadQueue(max_hints=1)
    cards = [make_named_card(name) for name in "xyz"]
    queue.want(cards, set())
    first = queue.next_read()
    assert first is not None and first.spare == frozenset()
    assert queue.next_read() is None
    assert queue.take_read(first) == []
    second = queue.next_read()
    assert second is not None and second.spare == {cards[0].key}
    queue.want(cards[2:], set())
    queue.take_read(second)
    assert [next_name(queue), next_name(queue)] == ["z", ""]


def test_loads_of_one_adapter_share_a_read() -> None:
    """An adapter would be read once for each load, and once more for the hint."""
    queue = LoadQueue(max_hints=2)
    queue.add(make_load(1, "a"))
    read = queue.next_read()
    assert read is not None and read.spare is None
    queue.add(make_load(2, "a"))
    queue.want([make_named_card("a")], set())
    assert queue.next_read() is None
    assert [load.order.load_id for load in queue.take_read(read)] == [1, 2]


def test_an_order_joins_what_is_read_ahead_and_is_next_if_that_fails() -> None:
    """There was no room for a hint; an order finds some."""
    queue = LoadQueue(max_hints=1)
    queue.want([make_named_card("a")], set())
    hint = queue.next_read()
    assert hint is not None
    queue.add(make_load(1, "a"))
    queue.add(make_load(2, "b"))
    queue.put_back(queue.take_read(hint))
    assert [next_name(queue), next_name(queue)] == ["a", "b"]


def test_whoever_is_ready_first_crosses_first() -> None:
    """An image in host memory would wait behind somebody else's disk."""
    queue = LoadQueue(max_hints=1)
    queue.add(make_load(1, "a"))
    queue.add(make_load(2, "b", make_image()))
    queue.add(make_load(3, "c", make_image()))
    crossing = [queue.next_crossing(), queue.next_crossing(), queue.next_crossing()]
    assert [load.order.load_id if load else None for load in crossing] == [2, 3, None]


def test_every_load_ends_once() -> None:
    """A load lost in the books is a request that waits for ever."""
    rng, queue = random.Random(3), LoadQueue(max_hints=1)
    ends: dict[int, str] = {}
    reads, crossing, num_loads = [], [], 0

    def end(load: Load, how: str) -> None:
        assert load.order.load_id not in ends
        ends[load.order.load_id] = how

    for step in range(4000):
        name = rng.choice("abcde")
        match rng.randrange(7) if step < 3500 else rng.choice((2, 3, 4, 5)):
            case 0:
                image = make_image() if rng.random() < 0.5 else None
                queue.add(make_load(num_loads, name, image))
                num_loads += 1
            case 1:
                queue.want([make_named_card(name) for name in rng.sample("abcde", 3)], set())
            case 2:
                read = queue.next_read()
                if read is not None:
                    reads.append(read)
                    keys = [read.card.key for read in reads]
                    assert len(keys) == len(set(keys)), "one adapter is read twice"
            case 3 if reads:
                read = reads.pop(rng.randrange(len(reads)))
                loads = queue.take_read(read)
                if read.spare is not None and rng.random() < 0.3:
                    queue.put_back(loads)
                    continue
                for load in loads:
                    load.image = make_image()
                    queue.add(load)
            case 4:
                load = queue.next_crossing()
                if load is not None:
                    crossing.append(load)
            case 5 if crossing:
                load = crossing.pop(0)
                queue.end(load)
                end(load, "crossed")
            case 6:
                load = queue.cancel(num_loads - rng.randrange(12))
                if load is not None:
                    assert load.is_over and load not in crossing
                    end(load, "cancelled")
            case _:
                pass
    assert not reads and not crossing and queue.next_read() is None
    assert sorted(ends) == list(range(num_loads))
    assert min(list(ends.values()).count(how) for how in ("crossed", "cancelled")) > 50
    assert queue.clear() == []
