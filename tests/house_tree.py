"""The source tree as the house test reads it: files, rooms, imports and calls, by syntax alone.

Nothing is imported and nothing is run here, so a file that cannot be imported on this machine is
judged all the same. Knows no law: `test_house.py` holds those. Each helper also takes its root,
so that the laws can be tried on a tree made to break them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO_DIR = Path(__file__).parent.parent
# Built, fetched or hidden: not ours to judge.
SKIPPED_DIRS = {"build", "dist", "peers", "__pycache__"}
# Rooms that are a folder; any other file of `server` is a room of its own.
ROOM_DIRS = (
    "server/scheduling",
    "server/memory",
    "server/execution",
    "server/rpc",
    "proto",
    "kernels",
    "adapters",
    "bench",
    "tests",
)
FLAT_NAMES = {"adapters", "bench", "kernels", "proto", "server"}


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file."""

    path: str  # from the root, with slashes
    text: str
    tree: ast.Module

    @property
    def num_lines(self) -> int:
        return self.text.count("\n")

    @property
    def is_generated(self) -> bool:
        return self.path.startswith("proto/") and "_pb2" in self.path

    @property
    def room(self) -> str:
        return room_of(self.path)


@dataclass(frozen=True, slots=True)
class Import:
    """One module that a file names in an import statement, wherever it stands in the file."""

    where: str  # path:line
    importer: str  # path
    target: str  # dotted; one of ours starts with "lorry."
    is_relative: bool

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


def room_of(path: str) -> str:
    """`server/memory/pool.py` -> `server/memory`, `server/cli.py` -> `server/cli.py`."""
    for room in ROOM_DIRS:
        if path.startswith(room + "/"):
            return room
    return path


def read_sources(root: Path = REPO_DIR) -> list[Source]:
    """Every Python file below the root that is ours, in the order of their paths."""
    return [
        Source(str(path.relative_to(root).as_posix()), text, ast.parse(text, str(path)))
        for path in sorted(_python_files(root))
        for text in [path.read_text()]
    ]


def _python_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in SKIPPED_DIRS and not path.name.startswith("."):
                yield from _python_files(path)
        elif path.suffix == ".py":
            yield path


def module_paths(sources: list[Source]) -> dict[str, str]:
    """Dotted name -> path, packages under the name of their folder."""
    found: dict[str, str] = {}
    for source in sources:
        parts = ["lorry", *source.path.removesuffix(".py").split("/")]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = source.path
    return found


def imports_of(source: Source, modules: dict[str, str]) -> Iterator[Import]:
    """Every import of a file; `from x import y` names the module `x.y` where there is one."""
    package = ["lorry", *source.path.split("/")[:-1]]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(f"{source.path}:{node.lineno}", source.path, alias.name, False)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                target = full if full in modules else base
                where = f"{source.path}:{node.lineno}"
                yield Import(where, source.path, target, node.level > 0)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def uses_of(source: Source, names: set[str]) -> Iterator[str]:
    """`path:line name` wherever a file mentions one of these dotted names or imports it."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and dotted(node) in names:
            yield f"{source.path}:{node.lineno} {dotted(node)}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in names:
                    yield f"{source.path}:{node.lineno} {node.module}.{alias.name}"


def functions_of(source: Source) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of each function, decorators left out."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of rooms, its first room repeated at the end; empty when there is none."""
    done: set[str] = set()

    def visit(room: str, trail: list[str]) -> list[str]:
        if room in trail:
            return [*trail[trail.index(room) :], room]
        if room in done:
            return []
        for other in sorted(edges.get(room, set())):
            if circle := visit(other, [*trail, room]):
                return circle
        done.add(room)
        return []

    for start in sorted(edges):
        if circle := visit(start, []):
            return circle
    return []
