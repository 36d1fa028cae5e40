"""`lorry token create | list | revoke`: the file of tokens, changed by its operator.

Works on the file alone, whether or not a server runs; one that does takes the change up within
a second. Knows nothing of calls. Registered by cli.py.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ..adapters.key import DEFAULT_TENANT
from .cli_options import AsJson
from .cli_output import EXIT_USAGE, complain, print_json, print_table
from .clock import unix_now_s
from .errors import ConfigError
from .token_file import Entries, TokenFile
from .tokens import ROLES, TokenEntry, check_place, digest_of, new_token

app = typer.Typer(
    help="Create, list and revoke the tokens of a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Tokens = Annotated[Path, typer.Option(metavar="FILE", help="The file `lorry serve` is given.")]
COLUMNS = ("name", "role", "tenant", "created")


@app.command()
def create(
    *,
    tokens: Tokens,
    name: Annotated[str, typer.Option(help="Who will hold it; revoked by this name.")],
    role: Annotated[str, typer.Option(help=f"{', '.join(ROLES)}; each may what those before may.")],
    tenant: Annotated[str, typer.Option(help="Whose adapters it reaches.")] = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once; the file keeps its hash."""
    with _refusals():
        check_place(name, tenant)
        if role not in ROLES:
            raise ConfigError(f"--role is {role!r}; it must be one of {', '.join(ROLES)}")
        token = new_token()
        entry = TokenEntry(name, ROLES[role], tenant, digest_of(token), unix_now_s())

        def add(entries: Entries) -> Entries:
            if any(other.name == name for other in entries):
                raise ConfigError(f"{tokens} has a token named {name}; revoke it, or take another")
            return (*entries, entry)

        TokenFile(tokens).change(add)
    if as_json:
        print_json({"token": token, "name": name, "role": role, "tenant": tenant})
        return
    typer.echo(token)
    complain(f"{name} may {role} as {tenant}; the token is not shown again")


@app.command("list")
def list_tokens(*, tokens: Tokens, as_json: AsJson = False) -> None:
    """List who holds tokens, and what they may."""
    with _refusals():
        entries, _ = TokenFile(tokens).read()
    if as_json:
        print_json({"tokens": [_shown(entry) for entry in entries]})
        return
    rows: list[tuple[object, ...]] = []
    for entry in entries:
        created = datetime.fromtimestamp(entry.created_unix_s).astimezone()
        rows.append(
            (entry.name, entry.role.word, entry.tenant, created.strftime("%Y-%m-%d %H:%M:%S"))
        )
    print_table(COLUMNS, rows)


@app.command()
def revoke(name: str, *, tokens: Tokens, as_json: AsJson = False) -> None:
    """Take a token back; calls that are being answered end by themselves."""
    with _refusals():

        def drop(entries: Entries) -> Entries:
            left = tuple(entry for entry in entries if entry.name != name)
            if len(left) == len(entries):
                raise ConfigError(f"{tokens} has no token named {name}")
            return left

        file = TokenFile(tokens)
        file.read()  # a file that is not there is not made
        file.change(drop)
    if as_json:
        print_json({"name": name})
    else:
        typer.echo(f"revoked {name}")


def _shown(entry: TokenEntry) -> dict[str, object]:
    """Without its hash."""
    return {
        "name": entry.name,
        "role": entry.role.word,
        "tenant": entry.tenant,
        "created_unix_s": entry.created_unix_s,
    }


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except ConfigError as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from error
