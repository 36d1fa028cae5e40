"""Brings adapters to where a cell wants them: out of the pool, into host memory, or into the pool.

A cold adapter is deleted and uploaded again: its new version has never been in the pool, and the
old one has left it. A copy under another name keeps its files in the store, so that nothing is
packed again and the disk is at rest when a cell begins. Where adapters are is asked of the server
until it is so, or it is told that it never came to that. Knows no order of cells. Called by
world.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...proto import lorry_pb2 as pb
from ...proto.async_client import AsyncClient

KEPT = "kept-"  # before the names of the copies
NUM_UPLOADS = 4  # at once: most of one is waiting for the disk
TIMEOUT_S = 60.0
POOL, HOST, DISK = pb.PLACE_POOL, pb.PLACE_HOST, pb.PLACE_DISK


class OutOfPlace(Exception):
    """Adapters do not come to where a cell needs them; says which and where they are."""


@dataclass(frozen=True, slots=True)
class Porter:
    """At one server."""

    client: AsyncClient
    folders: Mapping[str, Path]  # of the adapters, by name
    now_s: Callable[[], float] = time.monotonic

    async def stock(self) -> None:
        """All adapters into the store, where they are not there yet, and their copies."""
        there = {one.name async for one in self.client.adapters.list()}
        for prefix in (KEPT, ""):  # the second finds the files of the first
            await self._upload([n for n in self.folders if prefix + n not in there], prefix)

    async def _upload(self, names: Collection[str], prefix: str = "") -> None:
        gate = asyncio.Semaphore(NUM_UPLOADS)

        async def put(name: str) -> None:
            async with gate:
                await self.client.adapters.upload(self.folders[name], prefix + name)

        await asyncio.gather(*map(put, names))

    async def pin(self, names: Collection[str]) -> None:
        """Into the pool, to stay; they are not there yet when this returns."""
        for name in names:
            await self.client.adapters.prefetch(name, tier="pool", pin=True)

    async def chill(self, names: Collection[str], *, on_disk: bool) -> None:
        """Out of the pool: into host memory, or not even there."""
        for name in names:
            await self.client.adapters.delete(name)
        await self._upload(names)
        if not on_disk:
            for name in names:
                await self.client.adapters.prefetch(name, tier="host")
        await self.until_in(DISK if on_disk else HOST, names)

    async def until_in(self, place: pb.Place, names: Collection[str]) -> None:
        """Each answer takes its way through the engine, which is pause enough.

        Raises:
            OutOfPlace: they are not, and time is over.
        """
        end_s = self.now_s() + TIMEOUT_S
        while wrong := await self._elsewhere(place, names):
            if self.now_s() > end_s:
                name, found = wrong[0]
                raise OutOfPlace(
                    f"{len(wrong)} of {len(names)} adapters are not in {_word(place)} after "
                    f"{TIMEOUT_S:g} s; {name} is in {_word(found)}"
                )

    async def _elsewhere(
        self, place: pb.Place, names: Collection[str]
    ) -> list[tuple[str, pb.Place]]:
        found = {one.name: one.residency.place async for one in self.client.adapters.list()}
        places = [(name, found.get(name, pb.PLACE_UNSPECIFIED)) for name in names]
        return [one for one in places if one[1] != place]

    async def loads_s(self, names: Collection[str]) -> dict[str, float]:
        """What the last version's loads took, where there was one."""
        return {
            one.name: one.residency.load_s
            async for one in self.client.adapters.list()
            if one.name in names and one.residency.HasField("load_s")
        }


def _word(place: pb.Place) -> str:
    return pb.Place.Name(place).removeprefix("PLACE_").lower()
