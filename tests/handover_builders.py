"""For tests of the hand-over's kernels: mailboxes in one memory; the test is the helper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorry.kernels.handover import Shard, Slip, host_memory, make_post, outcome
from lorry.server.execution.cold_start.device_memory import MappedMemory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GUARD = 0x5A
ALIGN = 64
NUM_SLIPS = 4

Cuts = Sequence[tuple[int, int]]


class Mail:
    """Memory of `num_bytes`, guarded everywhere but where a slip says."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, num_bytes: int = 1 << 16) -> None:
        self.dtype, self.post = dtype, make_post(NUM_SLIPS, DEVICE)
        self.memory = host_memory(num_bytes).fill_(GUARD)
        self._mapped = [MappedMemory(memory, DEVICE) for memory in (self.memory, self.post.slips)]
        self._shift = self._mapped[0].address - self.memory.data_ptr()
        self._end, self._sizes = 0, dict[int, int]()
        self._taken = torch.zeros(num_bytes, dtype=torch.bool)

    def slip(
        self,
        cuts: Cuts,
        *,
        start: int = 0,
        in_width: int = 8,
        out_widths: Sequence[int] = (8,),
        epoch: int = 1,
        since: int = 1,
    ) -> Slip:
        """With bytes of its own for everything; words are 0."""
        size = self.dtype.itemsize
        shards = tuple(
            Shard(
                first,
                end - first,
                input=self._take((end - first) * in_width * size),
                go=self._take(8),
                done=self._take(8),
                answers=tuple(self._take((end - first) * width * size) for width in out_widths),
            )
            for first, end in cuts
        )
        for shard in shards:
            self.word(shard.go).zero_()
            self.word(shard.done).zero_()
        return Slip(epoch, since, start, shards)

    def word(self, address: int) -> Tensor:
        return self.bytes(address, 8).view(torch.int64)

    def rows(self, address: int, num_rows: int) -> Tensor:
        """As many as lie there, of the width they were taken for."""
        num_bytes = self._sizes[address]
        return self.bytes(address, num_bytes).view(self.dtype).view(num_rows, -1)

    def bytes(self, address: int, num_bytes: int) -> Tensor:
        at = address - self._shift - self.memory.data_ptr()
        return self.memory[at : at + num_bytes]

    def answer(self, slip: Slip, answers_TO: Sequence[Tensor]) -> None:
        """What the helpers do: `answers_TO` of all rows, one for each site; then their words."""
        for shard in slip.shards:
            rows = slice(shard.first, shard.first + shard.num_rows)
            if shard.num_rows:
                for place, answer_TO in zip(shard.answers, answers_TO, strict=True):
                    self.rows(place, shard.num_rows).copy_(answer_TO[rows])
            self.word(shard.done).fill_(slip.epoch)

    def outcome(self, number: int = 0) -> int:
        """Once the device is past all that was launched."""
        settle()
        return outcome(self.post.slips, number)

    def is_guarded(self) -> bool:
        """Nothing was written between what slips say."""
        return bool((self.memory[~self._taken] == GUARD).all())

    def close(self) -> None:
        settle()
        for mapped in self._mapped:
            mapped.close()

    def _take(self, num_bytes: int) -> int:
        at = self._end
        self._end = at + -(-num_bytes // ALIGN) * ALIGN + ALIGN
        assert self._end <= self.memory.numel(), "this test's mail is too small"
        self._taken[at : at + num_bytes] = True
        address = self.memory.data_ptr() + at + self._shift
        self._sizes[address] = num_bytes
        return address


def settle() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rows_on_device(num_rows: int, width: int, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator).to(dtype).to(DEVICE)
