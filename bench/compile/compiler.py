"""Compiles cases for a chip that is not there. Lives in a process of its own (`Child`).

Owns that process's Triton: no interpreter, a cache folder of ours, and a stand-in for the driver
that says which chip there is. A kernel is compiled through the very `KernelCall` of a launch, so
types, alignment and options are the launch's. Nothing runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...kernels.call import KernelCall
from ...kernels.cases import CompileCase
from .binary import Binary, read_usage
from .judge import CaseTerms
from .loads import read_loads
from .orders import read_orders

CUOBJDUMP_TIMEOUT_S = 60.0


class StandInDriver:
    """As much of a CUDA driver as a compilation asks for."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """The child's object.

    `find_cases` comes by name, and its module imports no kernel: kernels are decorated in here,
    when it is called.
    """

    def __init__(self, find_cases: Callable[[], Iterable[CompileCase]], cache_dir: Path) -> None:
        # Whatever the caller's shell asks of Triton, the same is compiled.
        for name in [name for name in os.environ if name.startswith("TRITON_")]:
            del os.environ[name]
        os.environ["TRITON_CACHE_DIR"] = str(cache_dir)
        # Triton prints a kernel that ptxas refuses, thousands of lines; the error says what it is.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._cases: dict[str, CompileCase] = {}
        for case in find_cases():
            if case.name in self._cases:
                raise ValueError(f"two cases are named {case.name}")
            self._cases[case.name] = case

    def cases(self) -> list[CaseTerms]:
        return [
            CaseTerms(case.name, stack_bytes=case.stack_bytes, unaligned=case.unaligned)
            for case in self._cases.values()
        ]

    def compile(self, name: str, arch: int) -> Binary:
        call = self._cases[name].build()
        from triton.runtime import driver

        driver.set_active(StandInDriver(arch))  # type: ignore[arg-type]
        with warnings.catch_warnings():
            # What Triton warns of, tests and servers would hear at a launch.
            warnings.simplefilter("error", UserWarning)
            compiled = call.compile()
        usage = read_usage(_resource_usage(compiled.asm["cubin"]))
        return Binary(
            case=name,
            arch=arch,
            num_warps=compiled.metadata.num_warps,
            num_registers=usage.num_registers,
            stack_bytes=usage.stack_bytes,
            local_bytes=usage.local_bytes,
            shared_bytes=compiled.metadata.shared,
            scratch_bytes=compiled.metadata.global_scratch_size,
            loads=read_loads(compiled.asm["ptx"], compiled.asm["ttgir"]),
            unaligned=unaligned_arguments(call),
            specialised=specialised_arguments(call),
            orders=read_orders(compiled.asm["ptx"]),
        )


def unaligned_arguments(call: KernelCall) -> tuple[str, ...]:
    """Tensors for which Triton may not assume 16 bytes; of a meta tensor its offset counts."""
    return tuple(
        parameter.name
        for parameter, value in zip(call.kernel.params, call.args, strict=False)
        if hasattr(value, "data_ptr") and value.data_ptr() % 16
    )


def specialised_arguments(call: KernelCall) -> tuple[str, ...]:
    """Integers that are neither constants of the kernel nor `do_not_specialize`."""
    return tuple(
        parameter.name
        for parameter, value in zip(call.kernel.params, call.args, strict=False)
        if type(value) is int and not (parameter.is_constexpr or parameter.do_not_specialize)
    )


def _resource_usage(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        done = subprocess.run(
            [tool, "--dump-resource-usage", str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=CUOBJDUMP_TIMEOUT_S,
        )
    if done.returncode:
        raise RuntimeError(f"cuobjdump ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
