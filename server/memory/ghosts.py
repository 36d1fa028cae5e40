"""What was known of blocks that have gone: should one come back, its uses go on where they were.

Owns uses by hash, as many as it is allowed, the longest gone forgotten first. Does not know pages,
prompts or worths. Without it whatever is asked for more seldom than the pool turns over would be
new each time it comes. A cache that remembers what it has evicted is ARC's ghost list (Megiddo and
Modha, FAST 2003). Kept by the store of blocks.
"""

from __future__ import annotations

from collections import OrderedDict

from .economy import Use


class Ghosts:
    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._uses: OrderedDict[bytes, Use] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def remember(self, hash_: bytes, use: Use) -> None:
        """Its block has been evicted."""
        self._uses[hash_] = use
        if len(self._uses) > self._max_blocks:
            self._uses.popitem(last=False)

    def recall(self, hash_: bytes) -> Use | None:
        """Its block is back; None: it never was here, or long ago."""
        return self._uses.pop(hash_, None)
