"""A device and a link made of dicts, for the memory soak: a wrong page cannot go unseen.

The KV of a place is a number made of the adapter's content and all tokens up to it, so each page
says whose it is. A row that reads a page checks all it finds; pages that are free hold nothing; a
page under a step on its way is nobody else's. Tokens follow from the KV, and so does what a
request should have been answered (`answer`). Used by memory_soak_world.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from ..adapters.errors import AdapterLoadFailed
from ..adapters.host_tier import HeldImage, HostTierStats
from ..adapters.image import ImageLayout
from ..adapters.key import AdapterCard, AdapterKey
from ..server.execution.batch import StepResult, StepRow, ToldPrompt
from ..server.memory.link_records import (
    LayerLanded,
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from ..server.scheduling.sampling import TokenLogprobs

NUM_TOKENS = 12  # of the vocabulary: answers meet, and stop, now and then
BROKEN = "broken"  # how the content of an adapter begins whose logits are not finite
BASE = "base"


class MemoryBroken(Exception):
    """Somebody met what is not his own: the finding that the soak looks for."""


def root_of(content: str) -> int:
    return crc32(content.encode())


def next_kv(before: int, token: int) -> int:
    # The hash of a tuple of integers is the same in every process.
    return hash((before, token))


def sampled(kv: int) -> int:
    return kv % NUM_TOKENS


def answer(content: str, prompt_ids: Sequence[int], count: int, stop_ids: Collection[int]):
    """What a request gets that is alone, in memory without end."""
    kv, tokens = root_of(content), list[int]()
    for token in prompt_ids:
        kv = next_kv(kv, token)
    while len(tokens) < count and not (tokens and tokens[-1] in stop_ids):
        tokens.append(sampled(kv))
        kv = next_kv(kv, tokens[-1])
    return tokens


@dataclass(eq=False)
class Pages:
    """What lies in the pool's pages. A page that is in neither dict holds nothing."""

    images: dict[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    kv: dict[int, dict[int, int]] = field(default_factory=dict[int, dict[int, int]])
    flights: list[Flight] = field(default_factory=list["Flight"])  # not landed, oldest first

    def poison(self, pages: Collection[int]) -> None:
        self._expect_unused(pages)
        for page in pages:
            self.images.pop(page, None)
            self.kv.pop(page, None)

    def write_image(self, card: AdapterCard, pages: Sequence[int]) -> None:
        self._expect_unused(pages)
        for part, page in enumerate(pages):
            if page in self.kv or page in self.images:
                raise MemoryBroken(f"{card.key} is written over page {page}, which is in use")
            self.images[page] = (card.key.content_hash, part)

    def _expect_unused(self, pages: Collection[int]) -> None:
        for flight in self.flights:
            if not flight.pages.isdisjoint(pages):
                raise MemoryBroken(f"pages {pages} are taken from a step on its way")


class Flight:
    """A step that is computed as late as can be: when somebody waits for it."""

    def __init__(self, device: Device, rows: Sequence[StepRow]) -> None:
        self._device, self._rows = device, rows
        self._result: StepResult | None = None
        slots = {row.adapter_slot for row in rows if row.adapter_slot >= 0}
        self.pages = {page for row in rows for page in row.pages}
        self.pages |= {page for slot in slots for page in device.attached[slot]}

    def wait(self) -> StepResult:
        if self._result is None:
            self._result = self._device.run(self._rows)
            self._device.pages.flights.remove(self)
        return self._result


class Device:
    """The runner's face."""

    def __init__(self, pages: Pages, *, tokens_per_page: int) -> None:
        self.pages = pages
        self.attached: dict[int, tuple[int, ...]] = {}
        self.num_cells_read = 0
        self._tokens_per_page = tokens_per_page
        self._last_token: dict[int, int] = {}

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        if slot in self.attached or len(pages) != layout.num_pages:
            raise MemoryBroken(f"slot {slot} is attached twice, or to {len(pages)} pages")
        self.attached[slot] = tuple(pages)

    def detach(self, slot: int) -> None:
        del self.attached[slot]

    def launch(self, rows: Sequence[StepRow]) -> Flight:
        flight = Flight(self, list(rows))
        self.pages.flights.append(flight)
        return flight

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        self._expect_no_shared_writes(rows)
        fed = [self._write(row) for row in rows]
        tokens: dict[int, int] = {}
        broken: list[int] = []
        told: list[ToldPrompt] = []
        for row, ids in zip(rows, fed, strict=True):
            content = self._content(row.adapter_slot)
            kv = self._read(row, content, ids)
            if row.sample and content.startswith(BROKEN):
                broken.append(row.row)
                # A step behind this one is computed in vain, with whatever is there.
                self._last_token[row.row] = 0
            elif row.sample:
                tokens[row.row] = sampled(kv)
            if row.tell:
                told.append(_tell(row))
        self._last_token.update(tokens)
        return StepResult(tokens, not_finite=tuple(broken), told=tuple(told))

    def _write(self, row: StepRow) -> list[int]:
        """Into the pages, as the row's own list has it; returns all tokens computed by then."""
        fed = list(row.token_ids) or [self._last_token[row.row]]
        ids = [*row.known_ids[: row.start], *fed]
        if len(fed) != row.num_tokens or len(ids) != row.start + row.num_tokens:
            raise MemoryBroken(f"row {row.row} feeds {len(fed)} tokens at {row.start}: {row}")
        before = self._cell(row, row.start - 1) if row.start else None
        kv = root_of(self._content(row.adapter_slot)) if before is None else before
        for place in range(row.start, len(ids)):
            kv = next_kv(kv, ids[place])
            page, offset = self._place(row, place)
            if page in self.pages.images:
                raise MemoryBroken(f"row {row.row} writes over an adapter's page {page}")
            if offset == 0:
                self.pages.kv[page] = {}
            self.pages.kv.setdefault(page, {})[offset] = kv
        return ids

    def _read(self, row: StepRow, content: str, ids: list[int]) -> int:
        kv = root_of(content)
        for place, token in enumerate(ids):
            kv = next_kv(kv, token)
            if self._cell(row, place) != kv:
                page, _ = self._place(row, place)
                raise MemoryBroken(f"row {row.row} meets somebody else's KV in page {page}: {row}")
        self.num_cells_read += len(ids)
        return kv

    def _cell(self, row: StepRow, place: int) -> int | None:
        page, offset = self._place(row, place)
        return self.pages.kv.get(page, {}).get(offset)

    def _place(self, row: StepRow, place: int) -> tuple[int, int]:
        return row.pages[place // self._tokens_per_page], place % self._tokens_per_page

    def _expect_no_shared_writes(self, rows: Sequence[StepRow]) -> None:
        num_users = Counter(page for row in rows for page in row.pages)
        for row in rows:
            first, last = row.start, row.start + row.num_tokens - 1
            written = row.pages[first // self._tokens_per_page : last // self._tokens_per_page + 1]
            if any(num_users[page] > 1 for page in written):
                raise MemoryBroken(f"row {row.row} writes a page that others read: {row}")

    def _content(self, slot: int) -> str:
        if slot < 0:
            return BASE
        parts = [self.pages.images.get(page, ("", -1)) for page in self.attached[slot]]
        content = parts[0][0]
        if not content or parts != [(content, part) for part in range(len(parts))]:
            raise MemoryBroken(f"slot {slot} holds {parts}")
        return content


def _tell(row: StepRow) -> ToldPrompt:
    logprobs = tuple(TokenLogprobs(row.known_ids[place + 1], 0.0) for place in row.tell)
    return ToldPrompt(row.row, row.tell.start + 1, logprobs)


class SoakLink:
    """Each load is told of some polls after its order; some fail, some are cancelled in time."""

    def __init__(
        self, pages: Pages, rng: random.Random, *, max_polls: int, fail_share: float
    ) -> None:
        self._pages, self._rng = pages, rng
        self._max_polls, self._fail_share = max_polls, fail_share
        self._polls = 0
        self._due: dict[int, tuple[int, LoadOrder]] = {}  # load_id -> poll, order
        self._cancelled: set[int] = set()
        self.num_landed = self.num_failed = self.num_cancelled = 0

    def start(self, order: LoadOrder) -> Opened | None:
        self._due[order.load_id] = (self._polls + self._rng.randint(1, self._max_polls), order)
        return None

    def cancel(self, load_id: int) -> None:
        if load_id in self._due and self._rng.random() < 0.8:
            self._cancelled.add(load_id)

    def want(self, cards: Sequence[AdapterCard]) -> None:
        """There is no disk to read ahead from."""

    def poll(self) -> Sequence[LinkEvent]:
        self._polls += 1
        due = [load_id for load_id, (poll, _) in self._due.items() if poll <= self._polls]
        return [event for load_id in due for event in self._end(self._due.pop(load_id)[1])]

    def let_go(self, image: HeldImage) -> None:
        """None is told open."""

    def close(self) -> None:
        self._due.clear()

    def _end(self, order: LoadOrder) -> Iterator[LinkEvent]:
        load_id, name = order.load_id, order.card.key.name
        if load_id in self._cancelled:
            self._cancelled.remove(load_id)
            self.num_cancelled += 1
            yield LoadFailed(load_id, LoadCancelled(f"nobody needs {name}"))
        elif self._rng.random() < self._fail_share:
            self.num_failed += 1
            yield LoadFailed(load_id, AdapterLoadFailed(f"no {name}", name=name))
        else:
            self.num_landed += 1
            self._pages.write_image(order.card, order.pages)
            yield LayerLanded(load_id, 0)
            yield Loaded(load_id, ImageLayout(len(order.pages), 1, (), (len(order.pages),), 0))


class NoHostTier:
    """Images come from nowhere."""

    def forget(self, key: AdapterKey) -> None:
        del key

    def contains(self, key: AdapterKey) -> bool:
        del key
        return False

    def stats(self) -> HostTierStats:
        return HostTierStats(bytes=0, capacity_bytes=0, items=0, hits=0, misses=0)
