"""`lorry adapter upload | list | show | prefetch | delete`.

Asks through the client and prints; what an adapter may be is the server's to say. Registered
by cli.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..proto.errors import LorryClientError, PermissionDenied, Unauthenticated, Unavailable
from .cli_connection import Connection, connecting
from .cli_options import CALL_TIMEOUT_S, AsJson
from .cli_output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    answering,
    complain,
    console,
    error_document,
    exit_code,
    format_bytes,
    print_json,
    print_table,
    sentence,
)

if TYPE_CHECKING:
    from ..proto.client import Client
    from ..proto.lorry_pb2 import Adapter, Residency

app = typer.Typer(
    help="Upload, list, show, prefetch and delete adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

COLUMNS = (
    "name",
    "version",
    "rank",
    "pages",
    "uploaded",
    "weights",
    "rounding",
    "targets",
    "created",
)
RESIDENCY_COLUMNS = ("place", "pool hits", "load")


@app.command()
@connecting
def upload(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="PEFT directories.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the adapter; else the directory's. One DIR only.")
    ] = None,
    base_fingerprint: Annotated[
        str, typer.Option(help="Refuse unless the server's base has this fingerprint.")
    ] = "",
    *,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Upload adapters as PEFT saved them.

    A refused one does not keep the others back; the exit code is 1 if any was refused.
    """
    if name is not None and len(directories) > 1:
        complain(f"--name fits one directory, and {len(directories)} were given")
        raise typer.Exit(EXIT_USAGE)
    if twice := _named_twice(directories):
        complain(f"{twice}, and the second would replace the first; upload one with --name")
        raise typer.Exit(EXIT_USAGE)

    stored: list[Adapter] = []
    failed: list[tuple[Path, LorryClientError]] = []
    with answering(as_json), connection.client() as client, _progress(enabled=not as_json) as track:
        for directory in directories:
            try:
                stored.append(_upload_one(client, directory, name, base_fingerprint, track))
            except LorryClientError as error:
                failed.append((directory, error))
                if isinstance(error, (Unavailable, Unauthenticated, PermissionDenied)):
                    break  # the rest would fail alike, some after a wait each
    _report_uploads(stored, failed, as_json=as_json)
    if failed:
        codes = {exit_code(error) for _, error in failed}
        raise typer.Exit(codes.pop() if len(codes) == 1 else EXIT_REFUSED)


def _named_twice(directories: Sequence[Path]) -> str:
    """The first two that would get one name; empty: there are none."""
    seen: dict[str, Path] = {}
    for directory in directories:
        name = directory.resolve().name
        if name in seen:
            return f"{seen[name]} and {directory} are both named {name}"
        seen[name] = directory
    return ""


Track = Callable[[str], Callable[[int, int], None]]


def _upload_one(
    client: Client, directory: Path, name: str | None, base_fingerprint: str, track: Track
) -> Adapter:
    return client.adapters.upload(
        directory,
        name,
        base_fingerprint=base_fingerprint,
        progress=track(name or directory.resolve().name),
    )


def _report_uploads(
    stored: Sequence[Adapter],
    failed: Sequence[tuple[Path, LorryClientError]],
    *,
    as_json: bool,
) -> None:
    if as_json:
        from ..proto.messages import to_plain

        print_json(
            {
                "adapters": [to_plain(adapter) for adapter in stored],
                "failed": [
                    {"directory": str(directory), "error": error_document(error)}
                    for directory, error in failed
                ],
            }
        )
    elif stored:
        print_table(COLUMNS, [_row(adapter) for adapter in stored])
        for note, names in _names_by_note(stored).items():
            complain(f"note on {', '.join(names)}: {note}")
    for directory, error in failed:
        complain(f"{directory}: {sentence(error)}")


def _names_by_note(adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """Adapters trained alike have the same note, which is then said once."""
    names: dict[str, list[str]] = {}
    for adapter in adapters:
        for note in adapter.notes:
            names.setdefault(note, []).append(adapter.name)
    return names


@app.command("list")
@connecting
def list_adapters(
    prefix: Annotated[str, typer.Option(help="Only names that begin with this.")] = "",
    *,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """List the stored adapters by name."""
    from ..proto.messages import to_plain

    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        adapters = list(client.adapters.list(prefix))
    if as_json:
        print_json({"adapters": [to_plain(adapter) for adapter in adapters]})
    else:
        name, *rest = COLUMNS
        rows = [_row(adapter) for adapter in adapters]
        places = [_residency(adapter.residency) for adapter in adapters]
        cells = [(row[0], *place, *row[1:]) for row, place in zip(rows, places, strict=True)]
        print_table((name, *RESIDENCY_COLUMNS, *rest), cells)


@app.command()
@connecting
def show(name: str, *, connection: Connection, as_json: AsJson = False) -> None:
    """Show everything the server knows of one adapter."""
    from ..proto.messages import to_plain

    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        plain = to_plain(client.adapters.get(name))
    if as_json:
        print_json(plain)
    else:
        print_table(("field", "value"), _lines(plain))


@app.command()
@connecting
def prefetch(
    name: str,
    *,
    host: Annotated[
        bool, typer.Option("--host", help="Into host memory only, not into the pool.")
    ] = False,
    pin: Annotated[
        bool | None,
        typer.Option("--pin/--unpin", help="Keep it in the pool from now on, or no longer."),
    ] = None,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Bring an adapter nearer before anybody asks for it; returns once that has begun."""
    from ..proto.messages import to_plain

    if host and pin is not None:
        complain("--host goes with neither --pin nor --unpin: what is pinned stays in the pool")
        raise typer.Exit(EXIT_USAGE)
    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        adapter = client.adapters.prefetch(name, tier="host" if host else None, pin=pin)
    if as_json:
        print_json(to_plain(adapter))
    else:
        typer.echo(f"{name} version {adapter.version}: {_place(adapter.residency)}")


@app.command()
@connecting
def delete(name: str, *, connection: Connection, as_json: AsJson = False) -> None:
    """Delete an adapter; requests that run on it finish first."""
    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        version = client.adapters.delete(name)
    if as_json:
        print_json({"name": name, "version": version})
    else:
        typer.echo(f"deleted {name} version {version}")


def _row(adapter: Adapter) -> tuple[object, ...]:
    created = datetime.fromtimestamp(adapter.created_unix_s).astimezone()
    return (
        adapter.name,
        adapter.version,
        adapter.max_rank,
        adapter.num_pages,
        format_bytes(adapter.size_bytes),
        format_bytes(adapter.weight_bytes),
        _rounding(adapter),
        " ".join(adapter.target_modules),
        created.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _residency(residency: Residency) -> tuple[object, ...]:
    """Empty cells for what is not known: no engine, no requests, no loads."""
    hits = ""
    if residency.requests_total:
        hits = f"{residency.pool_hits_total / residency.requests_total:.0%}"
    load = f"{1e3 * residency.load_s:.1f} ms" if residency.HasField("load_s") else ""
    return _place(residency), hits, load


def _place(residency: Residency) -> str:
    """disk, host, loading or pool; empty: the engine did not say."""
    from ..proto.lorry_pb2 import Place

    place = Place.Name(residency.place).removeprefix("PLACE_").lower() if residency.place else ""
    return f"{place}, pinned" if residency.pinned else place


def _lines(plain: Mapping[str, object], within: str = "") -> Iterator[tuple[str, str]]:
    """A row for each field, those of messages inside by the way to them."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _lines(cast("dict[str, object]", value), f"{within}{key}.")
        else:
            yield f"{within}{key}", _line(value)


def _line(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    return str(value)


@contextmanager
def _progress(*, enabled: bool) -> Generator[Track]:
    """A bar per upload on stderr, with bytes and rate; nothing where nobody watches."""
    bars = console(to_stderr=True) if enabled else None
    if bars is None or not bars.is_terminal:
        yield lambda _name: lambda _sent_bytes, _total_bytes: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=bars) as progress:

        def track(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(escape(name), total=None)

            def moved(sent_bytes: int, total_bytes: int) -> None:
                progress.update(task, completed=sent_bytes, total=total_bytes)

            return moved

        yield track


def _rounding(adapter: Adapter) -> str:
    """The largest change of a weight by the cast to the pool's dtype; empty: not packed yet."""
    if not adapter.num_pages:
        return ""
    return f"{adapter.rounding_error:.1e}" if adapter.rounding_error else "none"
