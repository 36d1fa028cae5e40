"""How the command line answers: one JSON document or tables, one sentence per error, exit codes.

Knows what a table or an error looks like, not what was asked for. Imports rich, grpc and
protobuf only inside functions, so that `lorry --help` pays for none of them. Used by cli.py
and cli_adapter.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..proto.errors import AdapterDirectoryError, CredentialsError, LorryClientError, Unavailable

if TYPE_CHECKING:
    from rich.console import Console

EXIT_OK = 0
EXIT_REFUSED = 1  # the server said no
EXIT_USAGE = 2  # the command, a flag or a local file is wrong
EXIT_UNREACHABLE = 3  # nobody answers, or whoever answers cannot serve now

# A file or a pipe has no width of its own; wide enough that no name is cut.
PIPE_COLUMNS = 200


def exit_code(error: LorryClientError) -> int:
    if isinstance(error, Unavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, (AdapterDirectoryError, CredentialsError)):
        return EXIT_USAGE
    return EXIT_REFUSED


def sentence(error: LorryClientError) -> str:
    """What the server said, with the field and the time to come back where it named them."""
    text = error.message
    if error.field and error.field not in text:
        text = f"{error.field}: {text}"
    if error.retry_after_s is not None:
        text = f"{text} (try again in {error.retry_after_s:g} s)"
    return " ".join(text.split())


def error_document(error: LorryClientError) -> dict[str, object]:
    return {
        "code": error.code,
        "message": error.message,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
        "resource": error.resource,
    }


def complain(text: str) -> None:
    typer.echo(f"lorry: {text}", err=True)


def print_json(document: object) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


@contextmanager
def answering(as_json: bool) -> Generator[None]:
    """Ends the command with a sentence and its exit code when a call fails inside."""
    try:
        yield
    except LorryClientError as error:
        if as_json:
            print_json({"error": error_document(error)})
        complain(sentence(error))
        raise typer.Exit(exit_code(error)) from error


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    *,
    to_stderr: bool = False,
) -> None:
    """Numbers are set to the right."""
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        # Text, not str: a name may hold square brackets, which rich would read as markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    console(to_stderr=to_stderr).print(table)


def console(*, to_stderr: bool = False) -> Console:
    from rich.console import Console

    stream: Any = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_COLUMNS)


def format_bytes(num_bytes: int) -> str:
    """12 B, 3.4 MiB."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
