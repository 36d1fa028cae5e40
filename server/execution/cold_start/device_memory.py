"""Host memory that a GPU's kernels read and write by themselves.

Owns its registration with CUDA and the address by which the device knows it. Where the device is a
CPU, whose kernels are interpreted in tests, memory is what it is. Called by device_handover.py.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

# cudaHostRegister: seen by every context, and mapped into the device's address space.
_PORTABLE, _MAPPED = 1, 2
_DEVICE_POINTER = 3  # CU_POINTER_ATTRIBUTE_DEVICE_POINTER
_DRIVER = "libcuda.so.1"
# Processors that show each thread's stores to others in their order (TSO).
_IN_ORDER = frozenset({"x86_64", "AMD64"})


class MappedMemory:
    """`memory`, contiguous, until `close`.

    Raises:
        RuntimeError: CUDA cannot map it.
    """

    def __init__(self, memory: Tensor, device: torch.device) -> None:
        self._memory, self._device = memory, device
        self._is_mapped = device.type == "cuda"
        self.address = memory.data_ptr()  # of its first byte, on the device
        if self._is_mapped:
            num_bytes = memory.numel() * memory.element_size()
            runtime: Any = torch.cuda.cudart()
            flags = _PORTABLE | _MAPPED
            torch.cuda.check_error(runtime.cudaHostRegister(self.address, num_bytes, flags))
            try:
                self.address = _device_address(self.address)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Once the device is done with it; before it is given back to the system."""
        if self._is_mapped:
            self._is_mapped = False
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostUnregister(self._memory.data_ptr()))


def check_host(machine: str) -> None:
    """A helper writes its answer and then its word, by plain stores; a kernel that sees the word
    takes the answer for written.

    Raises:
        RuntimeError: on this processor (`platform.machine()`) it need not be.
    """
    if machine not in _IN_ORDER:
        raise RuntimeError(f"helpers beside a GPU need an x86-64 processor; this one is {machine}")


def _device_address(host_address: int) -> int:
    """Mostly the same number; the driver knows."""
    found = ctypes.c_uint64()
    error = ctypes.CDLL(_DRIVER).cuPointerGetAttribute(
        ctypes.byref(found), ctypes.c_int(_DEVICE_POINTER), ctypes.c_uint64(host_address)
    )
    if error:
        raise RuntimeError(f"the device has no address for host memory: CUDA error {error}")
    return found.value
