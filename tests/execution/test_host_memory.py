"""The allocator keeps what is freed: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

from lorry.server.execution import host_memory

COUNT = """
import resource
{setting}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    for _ in range(5):
        blocks = [bytearray(8 << 20) for _ in range(8)]
        del blocks
use()
before = faults()
use()
print(faults() - before)
"""
KEEP = "from lorry.server.execution.host_memory import keep_freed_memory; keep_freed_memory()"


def count_faults(setting: str) -> int:
    code = COUNT.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_block_is_cleared_once() -> None:
    """Every layer of a prefill would ask the kernel for the same pages again."""
    if not host_memory.keep_freed_memory():
        pytest.skip("not glibc")
    kept, given_back = count_faults(KEEP), count_faults("")
    assert kept < 100 < given_back, (kept, given_back)


def test_another_platform_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting for speed must not keep a server from starting."""
    monkeypatch.setattr(host_memory.sys, "platform", "darwin")
    assert not host_memory.keep_freed_memory()
