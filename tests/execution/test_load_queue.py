"""Who is read next, who crosses next, and that every load ends once."""

from __future__ import annotations

import random
from collections import Counter

from lorry.adapters.host_tier import HeldImage
from lorry.adapters.key import AdapterKey
from lorry.server.execution.load_queue import Load, LoadQueue, Read
from lorry.tests.link_builders import make_image, make_named_card, make_order

NUM_LAYERS = 4  # of the images


def make_load(load_id: int, name: str, image: HeldImage | None = None) -> Load:
    order = make_order(load_id, (0, 1, 2, 3, 4), name)
    return Load(order, 0.0, image=image, num_read=NUM_LAYERS if image else 0)


def advance(queue: LoadQueue, read: Read, image: HeldImage, num_read: int) -> list[Load]:
    """As the link does."""
    told = queue.advance(read, image, num_read, now_s=0.0)
    for load in told:
        load.image = image
    return told


def crossing_id(queue: LoadQueue) -> int | None:
    """Who is on the wire now, with all that is read of it; it is over if that was all."""
    load = queue.next_crossing()
    if load is None:
        return None
    queue.crossed(load, load.num_read)
    if load.is_read:
        queue.end(load)
    return load.order.load_id


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


def test_a_load_crosses_with_what_is_read_of_it_and_keeps_its_place() -> None:
    """The wire would stand still for a disk; or whoever came later would go first for ever."""
    queue, image = LoadQueue(max_hints=1), make_image()
    queue.add(make_load(1, "a"))
    read = queue.next_read()
    assert read is not None
    assert [load.order.load_id for load in advance(queue, read, image, 0)] == [1]
    assert queue.next_crossing() is None
    advance(queue, read, image, 2)
    queue.add(make_load(2, "b", make_image()))
    assert crossing_id(queue) == 1
    assert advance(queue, read, image, 2) == []  # that is no news
    advance(queue, read, image, 3)
    assert [crossing_id(queue), crossing_id(queue), crossing_id(queue)] == [1, 2, None]
    late = make_load(3, "a")
    late.image, late.num_read = image, 3  # it joins the read as far as it is
    queue.add(late)
    assert crossing_id(queue) == 3
    assert [load.order.load_id for load in advance(queue, read, image, NUM_LAYERS)] == [1, 3]
    assert [crossing_id(queue), crossing_id(queue), crossing_id(queue)] == [1, 3, None]
    assert queue.take_read(read) == []


def test_a_read_that_fails_ends_whoever_is_not_on_the_wire() -> None:
    """Its pages would be given to others while the wire still writes them."""
    queue, image, error = LoadQueue(max_hints=1), make_image(), ValueError("torn")
    for load_id in (1, 2):
        queue.add(make_load(load_id, "a"))
    read = queue.next_read()
    assert read is not None
    advance(queue, read, image, 2)
    first = queue.next_crossing()
    assert first is not None and first.order.load_id == 1
    assert [load.order.load_id for load in queue.fail_read(read, error)] == [2]
    assert first.is_given_up and first.error is error and not first.is_over
    queue.crossed(first, 2)
    queue.end(first)
    assert queue.clear() == [] and queue.next_crossing() is None and queue.next_read() is None


class Books:
    """A link without threads or bytes: whatever it may do next, at random."""

    def __init__(self) -> None:
        self.rng, self.queue = random.Random(3), LoadQueue(max_hints=1)
        self.ends: dict[int, str] = {}
        self.reads: list[Read] = []
        self.images: dict[AdapterKey, HeldImage] = {}  # of reads whose cells are known
        self.crossing: list[Load] = []
        self.num_loads = 0

    def order(self) -> None:
        image = make_image() if self.rng.random() < 0.2 else None
        load = make_load(self.num_loads, self.rng.choice("abcde"), image)
        under_way = self.queue.under_way(load.order.card.key)
        if load.image is None and under_way:
            load.image, load.num_read = under_way.image, under_way.num_read
        self.queue.add(load)
        self.num_loads += 1

    def want(self) -> None:
        cards = [make_named_card(name) for name in self.rng.sample("abcde", 3)]
        self.queue.want(cards, set())

    def begin_read(self) -> None:
        read = self.queue.next_read() if len(self.reads) < 3 else None
        if read is not None:
            self.reads.append(read)
            keys = [read.card.key for read in self.reads]
            assert len(keys) == len(set(keys)), "one adapter is read twice"

    def read_on(self) -> None:
        if self.reads:
            read = self.rng.choice(self.reads)
            image = self.images.setdefault(read.card.key, make_image())
            under_way = self.queue.under_way(read.card.key)
            assert under_way is not None
            advance(self.queue, read, image, min(under_way.num_read + 1, NUM_LAYERS))

    def end_read(self) -> None:
        if not self.reads:
            return
        read = self.reads.pop(self.rng.randrange(len(self.reads)))
        image = self.images.pop(read.card.key, None)
        if image is None and read.spare is not None and self.rng.random() < 0.3:
            self.queue.put_back(self.queue.take_read(read))
        elif self.rng.random() < 0.3:
            for load in self.queue.fail_read(read, ValueError("torn")):
                self._end(load, "torn")
        else:
            advance(self.queue, read, image or make_image(), NUM_LAYERS)
            self.queue.take_read(read)

    def begin_crossing(self) -> None:
        load = self.queue.next_crossing()
        if load is not None:
            assert load.num_crossed < load.num_read and load not in self.crossing
            self.crossing.append(load)

    def end_crossing(self) -> None:
        if self.crossing:
            load = self.crossing.pop(0)
            self.queue.crossed(load, self.rng.randint(load.num_crossed + 1, load.num_read))
            if load.num_crossed == NUM_LAYERS or load.is_given_up:
                self.queue.end(load)
                self._end(load, "torn on the wire" if load.error else "crossed")

    def cancel(self) -> None:
        load = self.queue.cancel(self.num_loads - self.rng.randrange(12))
        if load is not None:
            self._end(load, "cancelled")

    def _end(self, load: Load, how: str) -> None:
        assert load.is_over and load not in self.crossing
        assert load.order.load_id not in self.ends
        self.ends[load.order.load_id] = how


def test_every_load_ends_once() -> None:
    """A load lost in the books is a request that waits for ever."""
    books = Books()
    ends = [books.begin_read, books.end_read, books.begin_crossing, books.end_crossing]
    for _ in range(6000):
        more = [books.order, books.want, books.cancel, *[books.read_on] * 4]
        books.rng.choice([*ends, *more])()
    for _ in range(500):
        books.rng.choice(ends)()
    assert not books.reads and not books.crossing and books.queue.next_read() is None
    assert sorted(books.ends) == list(range(books.num_loads))
    counts = Counter(books.ends.values())
    assert min(counts[how] for how in ("crossed", "cancelled", "torn")) > 20, counts
    assert counts["torn on the wire"] > 5, counts
    assert books.queue.clear() == []
