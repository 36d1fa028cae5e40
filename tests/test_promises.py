"""`PROMISES.md` names the tests that settle what users suffer from; each must exist."""

import ast
import re
from pathlib import Path

TESTS_DIR = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \|$")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def read_rows(text: str) -> list[tuple[int, list[tuple[str, str]]]]:
    """Number and (path, test) of each row of the table."""
    found = [ROW.match(line) for line in text.splitlines()]
    return [(int(row[1]), TEST.findall(row[3])) for row in found if row]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def promises() -> list[tuple[int, list[tuple[str, str]]]]:
    return read_rows((TESTS_DIR / "PROMISES.md").read_text())


def test_every_named_test_exists() -> None:
    """A renamed test would leave a promise that nothing holds."""
    missing: list[str] = []
    for number, named in promises():
        assert named, f"promise {number} names no test"
        for path, name in named:
            file = TESTS_DIR.parent / path
            if not file.exists() or name not in names_in(file):
                missing.append(f"promise {number}: {path}::{name}")
    assert not missing, "\n".join(missing)


def test_every_row_is_read_and_numbers_are_unique() -> None:
    """A row that is misspelt would be skipped by the check above without a word."""
    text = (TESTS_DIR / "PROMISES.md").read_text()
    numbers = [number for number, _ in read_rows(text)]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(numbers) == len(lines) - 2  # the heading and the line below it
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)
    assert numbers


def test_rows_are_read_by_their_form() -> None:
    """The reader is ours; two tests in one row must both be checked."""
    row = "| 7 | small | `tests/a.py::test_x`, `tests/b/c.py::test_y` |"
    assert read_rows(row) == [(7, [("tests/a.py", "test_x"), ("tests/b/c.py", "test_y")])]
    assert read_rows("| seven | small | tests/a.py |") == []
