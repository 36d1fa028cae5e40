"""The README's tree: a line per file, said by the file itself.

A Python file's line is the first sentence of its docstring; generated code is left out, and of
the tests only what they are about. Other files have their line in a table here. Reads the
folders, not git, so that it works in an unpacked archive. Called by readme.py.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT_DIR = Path(__file__).resolve().parent.parent
MAX_SENTENCE_CHARS = 100
# A number or a dotted name does not end a sentence: a space has to follow.
SENTENCE_END = re.compile(r"(?<=[.!?])\s")

# What is no Python; a name that ends in a slash is a folder shown as one line.
OTHER_FILES = {
    ".ci/run": "What has to pass before a change is taken: make check, make test.",
    "CHANGELOG.md": "A line per change that a user notices.",
    "CONTRIBUTING.md": "Commands and the laws of the house.",
    "DESIGN.md": "Decisions: reason, rejected option, what would change our mind.",
    "LICENSE": "Apache-2.0.",
    "Makefile": "The few commands, the same for people and for CI.",
    "README.md": "This page.",
    "pyproject.toml": "Dependencies, packages, settings of the tools.",
    "bench/LOG.md": "Dated notes of what was tried and measured, failures above all.",
    "bench/results/": "Result files of the benches; the figures above come from here.",
    "bench/zoo/adapters/": "Ten trained adapters in PEFT's format.",
    "bench/zoo/answers.json": "What PEFT generates with them, token by token.",
    "bench/zoo/base/": "The tiny base model and its byte tokenizer.",
    "proto/lorry.proto": "The wire: three services and their messages.",
    "tests/PROMISES.md": "Each promise and the test that holds it.",
}


def render_tree(root: Path = ROOT_DIR) -> str:
    """One code block: files of the root, then each package, then the tests by folder."""
    rows = list(_rows(root))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {says}".rstrip() for name, says in rows]
    return "\n".join(["```text", *lines, "```"])


def first_sentence(docstring: str, *, max_chars: int = MAX_SENTENCE_CHARS) -> str:
    """On one line; what is too long ends at a word, with dots."""
    flat = " ".join(docstring.split())
    sentence = SENTENCE_END.split(flat, maxsplit=1)[0]
    return textwrap.shorten(sentence, max_chars, placeholder=" ...")


def test_nouns(folder: Path) -> str:
    """What the test files of a folder are about: `pool, residency`."""
    return ", ".join(sorted(path.stem.removeprefix("test_") for path in folder.rglob("test_*.py")))


def _rows(root: Path) -> Iterator[tuple[str, str]]:
    """Name, indented below its folder, and what it says."""
    yield from sorted(_files(root, root))
    for folder in _packages(root):
        yield f"{folder.relative_to(root).as_posix()}/", _says(folder / "__init__.py")
        for name, says in sorted(_files(folder, root)):
            yield f"  {name}", says
    yield from _test_rows(root)


def _packages(folder: Path) -> Iterator[Path]:
    """Every package below, each followed by those inside it; other folders hold no code."""
    for init in sorted(folder.glob("*/__init__.py")):
        yield init.parent
        yield from _packages(init.parent)


def _files(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    for path in folder.glob("*.py"):
        # A package's own file speaks on the line of its folder; the root has no such line.
        if "_pb2" not in path.name and (path.name != "__init__.py" or folder == root):
            yield path.name, _says(path)
    yield from _other_files(folder, root)


def _other_files(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Described files of a folder; of the root also those in folders without a heading."""
    for name, says in OTHER_FILES.items():
        path = root / name
        if _heading(path, root) == folder and (path.is_file() or _holds_files(path)):
            yield name if folder == root else name.removeprefix(_prefix(folder, root)), says


def _heading(path: Path, root: Path) -> Path:
    """The nearest folder above that has a heading."""
    above = path.parent
    while above not in (root, root / "tests") and not (above / "__init__.py").exists():
        above = above.parent
    return above


def _holds_files(path: Path) -> bool:
    """An empty folder is on this disk only, not in the repository."""
    return path.is_dir() and any(inner.is_file() for inner in path.rglob("*"))


def _prefix(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() + "/"


def _test_rows(root: Path) -> Iterator[tuple[str, str]]:
    tests = root / "tests"
    if not tests.is_dir():
        return
    loose = sorted(path.stem.removeprefix("test_") for path in tests.glob("test_*.py"))
    yield "tests/", f"A mirror of the rooms; on the whole house: {', '.join(loose)}."
    for name, says in sorted(_other_files(tests, root)):
        yield f"  {name}", says
    for folder in sorted(path for path in tests.iterdir() if path.is_dir()):
        if nouns := test_nouns(folder):
            yield f"  {folder.name}/", f"{nouns}."


def _says(path: Path) -> str:
    return first_sentence(ast.get_docstring(_parsed(path)) or "")


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
