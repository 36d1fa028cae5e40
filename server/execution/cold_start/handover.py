"""The seam between the device and the helpers: rows out, products in.

Owns the protocol's records and the Protocol; a CPU's is helpers.py's, a GPU's device_handover.py's.
A send never blocks, an answer is waited for within a bound, and a late answer is nobody's. After
CaraServe's CPU-assisted prefill. Does not know layers, plans or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ....adapters.host_tier import HeldImage


@dataclass(frozen=True, slots=True)
class Errand:
    """One hand-over: rows of one adapter at sites that share an input."""

    slot: int
    sites: tuple[int, ...]  # of one layer, in the order of the answers
    start: int  # rows [start, end) of the step's
    end: int


class Ticket(Protocol):
    """An errand that is under way."""

    def add(self, outs_TO: Sequence[Tensor]) -> bool:
        """Adds scale * ((x @ A.T) @ B.T) of each site to rows [start, end) of its out.

        False: no answer within the bound; the outs are as they were, and the errand is void. On a
        GPU the host does not look: it says True, and `lost` of the hand-over tells later.
        """
        ...


class Handover(Protocol):
    """Used by the thread that launches steps."""

    def open(self, slot: int, image: HeldImage) -> None:
        """Helpers may be asked for this slot from now on; the caller holds the image until
        `close`.
        """
        ...

    def close(self, slot: int) -> None:
        """Returns when no helper reads the image any more, or when it never will again."""
        ...

    def send(self, errand: Errand, hidden_TI: Tensor) -> Ticket | None:
        """Before the base's product, so that both run at once. None: no helper is up, or one has to
        pass what it was late with, or it does not fit the mailbox.

        hidden_TI  [T, I]  the site's input, all rows of the step
        """
        ...

    def lost(self) -> frozenset[int]:
        """Slots whose answer did not come since the last call; on a GPU the step must be over."""
        ...

    def stop(self) -> None:
        """End the helpers."""
        ...
