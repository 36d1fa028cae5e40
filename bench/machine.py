"""Where and of what a result was measured: hardware, versions, commit.

A result without these is not a result, so every bench puts this record into its file. Never
fails: what a machine does not tell is an empty string. Owns the lines that a bench prints of it
before it begins, and when it says that the machine is not its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ROOT_DIR = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "peft", "grpcio", "protobuf", "numpy", "triton")
# Load average of a minute above which the figures are somebody else's as well.
BUSY_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str  # model name
    num_cores: int  # that this process may use
    gpu: str  # names by nvidia-smi, empty without one
    os: str
    python: str
    packages: dict[str, str]  # name -> version, installed ones only
    commit: str  # of the checkout; "+changes" when files differ from it


def describe_machine() -> Machine:
    return Machine(
        cpu=_cpu_name(),
        num_cores=len(os.sched_getaffinity(0)),
        gpu=_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace("\n", ", "),
        os=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        commit=_commit(),
    )


def tell_hardware(machine: Machine, load_before: float, console: Console) -> None:
    """What is measured on, before anything is; `load_before`: load average of the last minute."""
    console.print(
        f"{machine.cpu}, {machine.num_cores} cores{', ' + machine.gpu if machine.gpu else ''}; "
        f"commit {machine.commit}",
        markup=False,
        highlight=False,
    )
    tell_busy(load_before, console)


def tell_busy(load_before: float, console: Console) -> None:
    """Nothing on an idle machine."""
    if load_before > BUSY_LOAD:
        console.print(
            f"This machine is busy (load average {load_before:.1f}): no figure of this run is "
            "worth quoting",
            style="yellow",
        )


def driver_version() -> str:
    """Of the GPU, empty without one."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT_DIR), "rev-parse", "--short=12", "HEAD")
    changes = _output("git", "-C", str(ROOT_DIR), "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if commit and changes else "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
