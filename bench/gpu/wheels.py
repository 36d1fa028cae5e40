"""Python packages that a GPU machine may lack, carried there as wheels.

`fetch` puts them into the git-ignored `.wheels/` of the checkout: what the project and its tests
need, less what every such machine has, and beside them which versions they ask of each other.
`path` unpacks those that this Python lacks, or has in a version older than that, and prints where,
for PYTHONPATH; nothing is installed. What is neither here nor carried it names, and ends with 1.
`path` imports nothing but the standard library, since it runs before any of them is found. Called
by `make wheels` and `make gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT_DIR = Path(__file__).resolve().parents[2]
WHEELS_DIR = ROOT_DIR / ".wheels"
LEAST = "least.json"  # beside the wheels: package -> the oldest version that will do
UNPACKED_DIR = ROOT_DIR / "build" / "wheels"
# Of the machine that they go to.
PYTHON = "3.12"
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
# A torch that fits the driver is there, and what it needs; so are its companions.
THERE = frozenset(
    {"torch", "triton", "transformers", "numpy", "safetensors", "tokenizers", "huggingface-hub"}
)
# Beside what the project needs to run.
FOR_TESTS = ("pytest", "hypothesis")
# Spreads the kernels' tests over the cores; they run without it, too.
WELCOME = ("pytest-xdist",)
# What markers are asked about, wherever `fetch` runs.
ENVIRONMENT = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}

PROJECT = "lorry"
Needs = Callable[[str], Sequence[str]]
Has = Callable[[str], str]


def _needs(name: str) -> Sequence[str]:
    """Of the project itself by its file: where it is only linked, nothing else tells."""
    if name == PROJECT:
        project = tomllib.loads((ROOT_DIR / "pyproject.toml").read_text())["project"]
        return project["dependencies"]
    return requires(name) or ()


def _installed(name: str) -> str:
    """Version; empty: it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.gpu.wheels")
    parser.add_argument("what", choices=("fetch", "path"))
    if parser.parse_args(argv).what == "fetch":
        return fetch(carried((PROJECT, *FOR_TESTS, *WELCOME)), WHEELS_DIR)
    places = unpack(WHEELS_DIR, UNPACKED_DIR, read_least(WHEELS_DIR))
    if lacking := lacks([*map(bare_name, _needs(PROJECT)), *FOR_TESTS], WHEELS_DIR):
        print(
            f"make gpu: {sys.executable} lacks {', '.join(lacking)}: run `make wheels` where there "
            f"is a network, and bring {WHEELS_DIR.name}/ here with the checkout",
            file=sys.stderr,
        )
        return 1
    print(os.pathsep.join(map(str, places)))
    return 0


def lacks(names: Sequence[str], folder: Path, has: Has = _installed) -> list[str]:
    """Those that are neither here nor carried; a package under another name is told by its
    module.
    """
    wheels = {normal(wheel.name.partition("-")[0]) for wheel in folder.glob("*.whl")}
    return [
        name
        for name in names
        if name not in wheels and not has(name) and not find_spec(name.replace("-", "_"))
    ]


def carried(roots: Sequence[str], needs: Needs = _needs) -> list[str]:
    """All that the roots need, and what that needs; without the project itself."""
    found: set[str] = set()
    to_see = list(roots)
    while to_see:
        name = to_see.pop()
        if name in found or name in THERE:
            continue
        found.add(name)
        to_see += [normal(need.name) for need in _needed_there(needs(name))]
    return sorted(found - {PROJECT})


def least_versions(names: Sequence[str], needs: Needs = _needs) -> dict[str, str]:
    """What the project and these packages ask of each other at least, by name."""
    least: dict[str, str] = {}
    for need in (need for name in (PROJECT, *names) for need in _needed_there(needs(name))):
        for spec in need.specifier:
            if spec.operator in (">=", "~="):  # what is pinned comes with whoever pins it
                name = normal(need.name)
                least[name] = max(least.get(name, "0"), spec.version, key=numbers)
    return least


def _needed_there(requirements: Sequence[str]) -> Iterator[Requirement]:
    """What holds on the machine that they go to, without any extra."""
    from packaging.requirements import Requirement

    for need in map(Requirement, requirements):
        if need.marker is None or need.marker.evaluate(ENVIRONMENT):
            yield need


def bare_name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normal(name[0]) if name else requirement


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(names: Sequence[str], folder: Path) -> int:
    """The wheels of the versions at hand, which are those that are tested; pip's exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    command += [flag for platform in PLATFORMS for flag in ("--platform", platform)]
    code = subprocess.run(
        [*command, *(f"{name}=={version(name)}" for name in names)], check=False
    ).returncode
    (folder / LEAST).write_text(json.dumps(least_versions(names), indent=2) + "\n")
    wheels = list(folder.glob("*.whl"))
    num_bytes = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {num_bytes / 1e6:.1f} MB in {folder}")
    return code


def read_least(folder: Path) -> dict[str, str]:
    """Empty where nothing is carried."""
    path = folder / LEAST
    return json.loads(path.read_text()) if path.exists() else {}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", text))


def unpack(folder: Path, home: Path, least: Mapping[str, str], has: Has = _installed) -> list[Path]:
    """A folder for each wheel whose package this Python lacks; they are unpacked once."""
    places: list[Path] = []
    for wheel in sorted(folder.glob("*.whl")):
        name = normal(wheel.name.partition("-")[0])
        there = has(name)
        if there and numbers(there) >= numbers(least.get(name, "")):
            continue
        place = home / wheel.stem
        if not place.exists():
            unfinished = place.with_suffix(".part")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unfinished)
            unfinished.rename(place)
        places.append(place)
    return places


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
