"""The threads on which prompts become tokens, so that the event loop is never held.

Owns how much may wait for them. Two lanes: what is short never waits for what is long. Knows no
requests and no tokenizer; used by prompt.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ..errors import Overloaded

# A tokenizer reads 1 to 3 MB a second: such a text takes about 10 ms.
SHORT_BYTES = 16 << 10
# In one lane: what comes behind would wait for some ten seconds. One text always fits.
MAX_WAITING_BYTES = 32 << 20
# Of what waits in a full lane, this much is done in a second.
BYTES_PER_S = 2 << 20

Given = ParamSpec("Given")
Made = TypeVar("Made")


class EncodingLanes:
    """Belongs to the event loop's thread."""

    def __init__(self, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._short = _Lane("short", max_waiting_bytes)
        self._long = _Lane("long", max_waiting_bytes)

    async def run(
        self, size_bytes: int, work: Callable[Given, Made], *args: Given.args, **named: Given.kwargs
    ) -> Made:
        """`work` of this cost, in its lane. Who leaves while it waits costs nothing more.

        Raises:
            Overloaded: the lane is full.
        """
        lane = self._short if size_bytes <= SHORT_BYTES else self._long
        return await lane.run(size_bytes, lambda: work(*args, **named))


class _Lane:
    def __init__(self, name: str, max_waiting_bytes: int) -> None:
        # One thread: texts wait for each other, not the loop for them, nor the pool of threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{name}")
        self._name = name
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0

    async def run(self, size_bytes: int, work: Callable[[], Made]) -> Made:
        waiting_bytes = self._waiting_bytes
        if waiting_bytes and waiting_bytes + size_bytes > self._max_waiting_bytes:
            raise Overloaded(
                f"{waiting_bytes} bytes of {self._name} prompts wait to be encoded; this one of "
                f"{size_bytes} would make more than {self._max_waiting_bytes}",
                field="prompt",
                retry_after_s=max(1.0, waiting_bytes / BYTES_PER_S / 2),
            )
        self._waiting_bytes += size_bytes
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting_bytes -= size_bytes
