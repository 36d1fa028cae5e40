"""Lists of cases that tests of the compile check send to its children, by name.

Imports no kernel and no torch: a child imports this before it has set up its Triton, and starts
fast where a test is about the child alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from lorry.kernels.call import KernelCall
from lorry.kernels.cases import CompileCase


def crash() -> KernelCall:
    """As a compiler that crashes: nothing is raised, the process is gone."""
    os._exit(3)


def refuse() -> KernelCall:
    raise ValueError("no such tile")


def doomed_cases() -> Iterator[CompileCase]:
    yield CompileCase("doomed/crash", crash)
    yield CompileCase("doomed/refuse", refuse)


def small_cases() -> Iterator[CompileCase]:
    from lorry.tests.compile_builders import small_cases

    yield from small_cases()


def twins() -> Iterator[CompileCase]:
    yield CompileCase("twin", refuse)
    yield CompileCase("twin", crash)
