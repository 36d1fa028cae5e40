"""The ceiling of the benches: bytes that a copy reads and writes, over the fastest copy."""

import pytest
import torch

from lorry.bench import bandwidth
from lorry.bench.bandwidth import copied_bytes_per_s, copy_bytes_per_s


def test_a_copy_counts_what_it_reads_and_what_it_writes() -> None:
    """Half the bandwidth would double every fraction; a slow copy is no ceiling."""
    assert copied_bytes_per_s(10, [4.0, 1.0, 2.0]) == 20.0


def test_copies_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure of either bench means anything without it."""
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 1 << 20)
    assert copy_bytes_per_s(torch.device("cpu")) > 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpus_copies_are_timed_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that stays reserved would be counted against the step that follows."""
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cuda", 256 << 20)
    reserved = torch.cuda.memory_reserved()
    assert 1e10 < copy_bytes_per_s(torch.device("cuda")) < 1e14
    assert torch.cuda.memory_reserved() <= reserved
