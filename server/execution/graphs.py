"""Recorded decode steps: launched by the host once, replayed by the device.

Owns the buckets, a recording for each of them with adapters and one without, and the logits that
all of them write. A step of a bucket differs from the recorded one by what lies in buffers alone:
its rows are padded, its lists are in device memory. Does not know what is recorded (paged_model.py
does) nor how (recorder.py does). Called by the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batch import StepRow
from .buckets import batch_buckets, pick_bucket
from .recorder import Reads, Recorder, Replay

# (rows, whether they have adapters) -> what computes their logits [rows, V], again and again
Build = Callable[[int, bool], Callable[[], Tensor]]


class DecodeGraphs:
    """See the module."""

    def __init__(self, recorder: Recorder, *, max_running: int) -> None:
        self._recorder = recorder
        self.buckets = batch_buckets(max_running)
        self._replays: dict[tuple[int, bool], Replay] = {}
        self._logits_BV: Tensor | None = None

    def record(self, build: Build, reads: Reads) -> None:
        """The largest first: smaller ones find room in what it gave back.

        `reads`: where the step lies that was built last.

        Raises:
            CannotRecord: what is built makes the host look.
        """
        for bucket in reversed(self.buckets):
            for with_lora in (False, True):
                compute = build(bucket, with_lora)
                # What was never run may still make things on its first call; the host may look
                # then, and not while a graph is recorded.
                logits_BV = compute()
                if self._logits_BV is None:
                    self._logits_BV = torch.empty_like(logits_BV)
                self._replays[bucket, with_lora] = self._recorder.record(
                    self._into_logits(compute, bucket), reads
                )

    def bucket(self, num_rows: int) -> int:
        """Where a decode step of so many rows belongs; 0: nowhere."""
        return pick_bucket(self.buckets, num_rows) if self._replays else 0

    def replay(self, bucket: int, *, with_lora: bool) -> Tensor:
        """Logits [bucket, V], good until the next replay."""
        self._replays[bucket, with_lora]()
        assert self._logits_BV is not None
        return self._logits_BV[:bucket]

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self._replays.clear()
        self._logits_BV = None

    def _into_logits(self, compute: Callable[[], Tensor], bucket: int) -> Callable[[], None]:
        # Recordings share their memory, so that a later one writes where an earlier one's result
        # was. One buffer for all results costs a copy of the logits, and no memory per bucket.
        assert self._logits_BV is not None
        out_BV = self._logits_BV[:bucket]

        def work() -> None:
            out_BV.copy_(compute())

        return work


def is_decode(rows: Sequence[StepRow]) -> bool:
    """Whether every row is of one token, whose logits and no others are wanted."""
    return all(row.num_tokens == 1 and row.sample and not row.tell for row in rows)
