"""Fakes of the seams: a clock, memory, a runner, a link and a host tier that a test can steer.

Each keeps the contract of the real thing (tests/server/test_contracts.py drives both through the
same assertions) and records what it was asked. `FakePages` stands for the pool's bytes: the link
writes adapters into it, the runner reads them and keeps its KV there, so a wrong page shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from zlib import crc32

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage, HostTierStats
from lorry.adapters.image import ImageLayout
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.execution.batch import StepResult, StepRow, ToldPrompt
from lorry.server.execution.staging import MAX_FLIGHTS
from lorry.server.memory.link_records import (
    LayerLanded,
    LinkEvent,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from lorry.server.scheduling.sampling import TokenLogprobs

NUM_LAYERS = 3  # of the model that the fake link loads for
BASE = "base"


class FakeClock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def advance(self, seconds: float) -> None:
        self.time_s += seconds


@dataclass
class FakePages:
    """What lies in each page: part of an adapter's image, or tokens by their place in the page."""

    images: dict[int, tuple[str, int]] = field(default_factory=dict)  # page -> adapter, its part
    kv: dict[int, dict[int, tuple[int, str]]] = field(default_factory=dict)  # -> token, adapter
    flights: list[FakeFlight] = field(default_factory=list)  # launched, not landed: oldest first

    def expect_unused(self, pages: Sequence[int]) -> None:
        for flight in self.flights:
            used = flight.users.keys() & set(pages)
            assert not used, f"pages {sorted(used)} are taken from a step on its way"

    def write_image(self, key: AdapterKey, pages: Sequence[int]) -> None:
        self.expect_unused(pages)
        for part, page in enumerate(pages):
            self.kv.pop(page, None)
            self.images[page] = (str(key), part)

    def poison(self, pages: Sequence[int]) -> None:
        """Pages that belong to nobody: whoever reads them finds nothing."""
        self.expect_unused(pages)
        for page in pages:
            self.images.pop(page, None)
            self.kv.pop(page, None)


def fake_token(adapter: str, tokens: Sequence[int]) -> int:
    """The token after these, by the base or an adapter (its key's text): 1000 to 1996."""
    return 1000 + crc32(repr((adapter, list(tokens))).encode()) % 997


def fake_answer(prompt_ids: Sequence[int], count: int, card: AdapterCard | None = None):
    """What a request gets that is alone, in memory without end."""
    known = list(prompt_ids)
    for _ in range(count):
        known.append(fake_token(str(card.key) if card else BASE, known))
    return known[len(prompt_ids) :]


def fake_logprobs(adapter: str, tokens: Sequence[int], token: int, num_top: int) -> TokenLogprobs:
    """Of `token` after these, and of as many others as asked."""
    value = -float(crc32(repr((adapter, list(tokens), token)).encode()) % 89)
    return TokenLogprobs(token, value, tuple((i, -1.0 - i) for i in range(num_top)))


class FakeFlight:
    """A step that is computed as late as can be: when somebody waits for it.

    So whatever was taken from it too early is gone by then. `users`: who uses each page; rows
    share what none of them writes.
    """

    def __init__(self, runner: FakeRunner, rows: list[StepRow]) -> None:
        self._runner, self._rows = runner, rows
        self._result: StepResult | None = None
        self.slots = {row.adapter_slot for row in rows} - {-1}
        self.users: dict[int, list[StepRow | int]] = {}
        for row in rows:
            for page in row.pages:
                self.users.setdefault(page, []).append(row)
        for slot in self.slots:
            self.users |= {page: [slot] for page in runner.attached[slot]}

    def wait(self) -> StepResult:
        if self._result is None:
            up = self._runner.pages.flights
            assert up[0] is self, "steps are waited for in their order"
            self._result = self._runner.run(self._rows)
            up.remove(self)
        return self._result

    def clashes(self, later: FakeFlight) -> Iterator[int]:
        """Pages that change hands from this step to one launched while it is on its way."""
        for page in self.users.keys() & later.users.keys():
            pairs = product(self.users[page], later.users[page])
            if not all(self._may_follow(mine, other, page) for mine, other in pairs):
                yield page

    def _may_follow(self, mine: StepRow | int, other: StepRow | int, page: int) -> bool:
        if not (isinstance(mine, StepRow) and isinstance(other, StepRow)):
            return mine == other
        # A request's own list says whose a row is: rows are given again.
        same = mine.row == other.row and mine.known_ids is other.known_ids
        written = (self._runner.pages_written(row) for row in (mine, other))
        return same or all(page not in pages for pages in written)


class FakeRunner:
    """Token = f(adapter in the slot's pages, tokens in the row's pages).

    Remembers the rows of every step, which slots hold what, and the token sampled last by row.
    """

    def __init__(self, pages: FakePages | None = None, *, tokens_per_page: int = 4) -> None:
        self.pages = pages or FakePages()
        self.tokens_per_page = tokens_per_page
        self.steps: list[list[StepRow]] = []
        self.num_up: list[int] = []  # of each launch: how many steps were on their way before
        self.attached: dict[int, tuple[int, ...]] = {}
        self._last_token: dict[int, int] = {}

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        assert slot not in self.attached, f"slot {slot} is attached already"
        assert len(pages) == layout.num_pages
        self.attached[slot] = tuple(pages)

    def detach(self, slot: int) -> None:
        assert all(slot not in flight.slots for flight in self.pages.flights), "a step reads it"
        del self.attached[slot]

    def launch(self, rows: Sequence[StepRow]) -> FakeFlight:
        for row in rows:
            whole = len(row.known_ids) >= row.start + row.num_tokens
            penalized = row.sample and row.sampling.needs_history
            assert whole or not penalized, f"row {row.row}: a penalty misses the newest token"
        flight, up = FakeFlight(self, list(rows)), self.pages.flights
        assert len(up) < MAX_FLIGHTS, "too many steps on their way"
        clashes = [page for before in up for page in before.clashes(flight)]
        assert not clashes, f"pages {clashes} are given away under a step on its way"
        self.num_up.append(len(up))
        up.append(flight)
        return flight

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        self.steps.append(list(rows))
        self._expect_no_shared_writes(rows)
        # Everyone writes before anyone reads, as a layer of the real one does.
        for row in rows:
            self._write(row)
        tokens = {row.row: fake_token(*self._read(row)) for row in rows if row.sample}
        self._last_token.update(tokens)
        logprobs = {
            row.row: fake_logprobs(*self._read(row), tokens[row.row], row.sampling.logprobs)
            for row in rows
            if row.sample and row.sampling.logprobs >= 0
        }
        told = tuple(self._tell(row) for row in rows if row.tell)
        return StepResult(tokens, logprobs=logprobs, told=told)

    def pages_written(self, row: StepRow) -> Sequence[int]:
        first, last = row.start, row.start + row.num_tokens - 1
        return row.pages[first // self.tokens_per_page : last // self.tokens_per_page + 1]

    def _expect_no_shared_writes(self, rows: Sequence[StepRow]) -> None:
        num_users = Counter(page for row in rows for page in row.pages)
        for row in rows:
            shared = [page for page in self.pages_written(row) if num_users[page] > 1]
            assert not shared, f"row {row.row} writes pages {shared}, which others read"

    def _tell(self, row: StepRow) -> ToldPrompt:
        adapter, tokens = self._read(row)
        assert row.start <= row.tell.start < row.tell.stop <= len(tokens), "not of this chunk"
        assert row.tell.stop < row.num_prompt, "the last token's next one is not of the prompt"
        entries = [
            fake_logprobs(
                adapter,
                tokens[: place + 1],
                row.known_ids[place + 1],
                row.sampling.prompt_logprobs,
            )
            for place in row.tell
        ]
        return ToldPrompt(row.row, row.tell.start + 1, tuple(entries))

    def _write(self, row: StepRow) -> None:
        adapter = self._adapter(row.adapter_slot)
        fed = list(row.token_ids) or [self._last_token[row.row]]
        assert len(fed) == row.num_tokens
        for position, token in enumerate(fed, row.start):
            page, offset = row.pages[position // self.tokens_per_page], self._offset(position)
            assert page not in self.pages.images, f"row {row.row} writes over an adapter's {page}"
            if offset == 0:
                self.pages.kv[page] = {}
            self.pages.kv.setdefault(page, {})[offset] = (token, adapter)

    def _read(self, row: StepRow) -> tuple[str, list[int]]:
        adapter, tokens = self._adapter(row.adapter_slot), list[int]()
        for position in range(row.start + row.num_tokens):
            page = row.pages[position // self.tokens_per_page]
            cell = self.pages.kv.get(page, {}).get(self._offset(position))
            assert cell is not None, f"row {row.row} reads page {page}, position {position}: NaN"
            assert cell[1] == adapter, f"row {row.row} meets KV of {cell[1]}, it is of {adapter}"
            tokens.append(cell[0])
        return adapter, tokens

    def _offset(self, position: int) -> int:
        return position % self.tokens_per_page

    def _adapter(self, slot: int) -> str:
        if slot == -1:
            return BASE
        parts = [self.pages.images.get(page, ("nothing", 0)) for page in self.attached[slot]]
        names = {name for name, _ in parts}
        whole = len(names) == 1 and [part for _, part in parts] == list(range(len(parts)))
        assert whole, f"slot {slot} holds {parts}"
        return names.pop()


class FakeLink:
    """Holds its loads until a test lands or fails them; with `instant` none is held.

    `images`: by name, of adapters in host memory: a load of one is open at once. Any load may be
    opened later. What was told open and not let go of is in `held`.
    """

    def __init__(self, pages: FakePages | None = None, *, instant: bool = False) -> None:
        self.instant = instant
        self.started: list[LoadOrder] = []
        self.orders: dict[int, LoadOrder] = {}  # under way, by load_id
        self._pages = pages or FakePages()
        self.cancelled: list[int] = []  # load ids; a test lands or fails them all the same
        self.wanted: tuple[AdapterCard, ...] = ()
        self._layers: dict[int, int] = {}
        self.events: list[LinkEvent] = []
        self.images: dict[str, HeldImage] = {}
        self.held: list[HeldImage] = []

    def start(self, order: LoadOrder) -> Opened | None:
        self.started.append(order)
        self.orders[order.load_id] = order
        self._layers[order.load_id] = 0
        image = self.images.get(order.card.key.name)
        if image is not None:
            self.held.append(image)
        if self.instant:
            self.finish(order.load_id)
        return None if image is None else Opened(order.load_id, image)

    def open(self, load_id: int, image: HeldImage) -> None:
        """Its file's header has been read."""
        self.held.append(image)
        self.events.append(Opened(load_id, image))

    def let_go(self, image: HeldImage) -> None:
        self.held.remove(image)

    def poll(self) -> list[LinkEvent]:
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        self.orders.clear()

    def cancel(self, load_id: int) -> None:
        self.cancelled.append(load_id)

    def want(self, cards: Sequence[AdapterCard]) -> None:
        self.wanted = tuple(cards)

    def land_layer(self, load_id: int) -> bool:
        """False: that was the last one, the load is over."""
        layer = self._layers[load_id]
        if layer < NUM_LAYERS:
            self._layers[load_id] += 1
            self.events.append(LayerLanded(load_id, layer))
            return True
        order = self.orders.pop(load_id)
        self._pages.write_image(order.card.key, order.pages)
        self.events.append(Loaded(load_id, make_layout(order.card.num_pages)))
        return False

    def finish(self, load_id: int) -> None:
        while self.land_layer(load_id):
            pass

    def fail(self, load_id: int) -> None:
        name = self.orders.pop(load_id).card.key.name
        self.events.append(LoadFailed(load_id, AdapterLoadFailed(f"no {name}", name=name)))


class FakeHostTier:
    """Holds what a test says; remembers who was forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[AdapterKey] = []
        self.held: set[AdapterKey] = set()

    def forget(self, key: AdapterKey) -> None:
        self.forgotten.append(key)

    def contains(self, key: AdapterKey) -> bool:
        return key in self.held

    def stats(self) -> HostTierStats:
        return HostTierStats(bytes=0, capacity_bytes=0, items=0, hits=0, misses=0)


def make_key(name: str = "a", *, version: int = 1) -> AdapterKey:
    return AdapterKey("default", name, version, content_hash=f"hash-{name}-{version}")


def make_card(
    name: str = "a",
    *,
    num_pages: int = 2,
    version: int = 1,
    weight_bytes: int = 1,
    image_path: Path = Path("nowhere"),
) -> AdapterCard:
    """Without files behind it, unless the test has written an image."""
    return AdapterCard(
        key=make_key(name, version=version),
        size_bytes=1,
        max_rank=8,
        num_pages=num_pages,
        weight_bytes=weight_bytes,
        target_modules=("q_proj",),
        created_unix_s=0.0,
        rounding_error=0.0,
        notes=(),
        image_path=image_path,
    )


def make_layout(num_pages: int = 2) -> ImageLayout:
    return ImageLayout(num_pages, 512, sites=(), landed_pages=(num_pages,), used_elements=0)
