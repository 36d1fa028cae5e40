"""Options of every command that talks to a server: where it is, who asks, what is trusted.

Owns the one list of them and the client they make; a command takes a `Connection` and stands
under `@connecting`. A token is never an option's value, which every user of a machine can read
in its list of processes: it comes from a file or from LORRY_TOKEN. Used by cli.py and
cli_adapter.py.
"""

from __future__ import annotations

import functools
import inspect
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..proto.errors import CredentialsError
from .cli_options import DEFAULT_ADDRESS, Address
from .config import TOKEN_VARIABLE, token_of_environment

if TYPE_CHECKING:
    from ..proto.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    """The options as they were given; a field each."""

    address: Address = DEFAULT_ADDRESS
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Holds the token; none: {TOKEN_VARIABLE} of the environment."
        ),
    ] = None
    tls: Annotated[
        bool, typer.Option("--tls", help="Encrypt, and trust whom this machine trusts.")
    ] = False
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="LORRY_CA",
            metavar="FILE",
            help="Encrypt, and trust these certificates alone.",
        ),
    ] = None
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This client's certificate, PEM.")
    ] = None
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of --cert, PEM.")] = None
    plaintext_token: Annotated[
        bool, typer.Option("--plaintext-token", help="Send the token unencrypted all the same.")
    ] = False

    def client(self, *, timeout_s: float | None = None) -> Client:
        """Raises:
        CredentialsError: an option cannot be used.
        """
        from ..proto.client import Client

        token = token_of_environment() if self.token_file is None else read_token(self.token_file)
        return Client(
            self.address,
            timeout_s=timeout_s,
            token=token,
            tls=self.tls or None,
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            plaintext_token=self.plaintext_token,
        )


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Typer sees a Connection's fields in place of the command's parameter `connection`."""
    made_of = inspect.signature(Connection, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    shown = {name: found for name, found in own.items() if name != "connection"}
    shown |= {
        name: found.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, found in made_of.items()
    }

    @functools.wraps(command)
    def connected(*args: Any, **given: Any) -> None:
        connection = Connection(**{name: given.pop(name) for name in made_of})
        command(*args, **given, connection=connection)

    in_order = sorted(shown.values(), key=lambda parameter: parameter.kind)
    typed: Any = connected
    typed.__signature__ = inspect.Signature(in_order)
    typed.__annotations__ = {name: found.annotation for name, found in shown.items()}
    return connected


def read_token(path: Path) -> str:
    """The first line of a file, or of a pipe, as `<(pass show lorry)` makes one.

    Raises:
        CredentialsError: it cannot be read, or others may read it.
    """
    from ..proto.credentials import MAX_TOKEN_CHARS

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
                raise CredentialsError(
                    f"--token-file is {path}, whose mode is {stat.S_IMODE(mode):04o}: others may "
                    f"read or change it; chmod 600 {path}",
                    field="--token-file",
                )
            line = file.readline(MAX_TOKEN_CHARS + 1)  # and its end, or one too many
    except OSError as error:
        raise CredentialsError(
            f"--token-file is {path}, which cannot be read: {error.strerror}",
            field="--token-file",
        ) from error
    if len(line) > MAX_TOKEN_CHARS and not line.endswith(b"\n"):
        raise CredentialsError(
            f"--token-file is {path}, whose first line is longer than a token may be, "
            f"{MAX_TOKEN_CHARS} characters",
            field="--token-file",
        )
    token = line.decode("ascii", "replace").strip()
    if not token:
        raise CredentialsError(f"--token-file is {path}, which is empty", field="--token-file")
    return token
