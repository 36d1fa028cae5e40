"""How the commands that talk to a server come by its address, its certificate and a token."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from lorry.proto.credentials import MAX_TOKEN_CHARS
from lorry.server.cli import app, main
from lorry.server.cli_connection import Connection, read_token
from lorry.server.tokens import new_token
from lorry.tests.access_builders import make_certificate
from lorry.tests.proto_builders import FakeServer

TOKEN = new_token()
Captured = pytest.CaptureFixture[str]
# Commands that talk to no server.
LOCAL = {"serve", "bench", "token create", "token list", "token revoke"}


class Header(grpc.ServerInterceptor):
    """Keeps what each call was authorized with."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self.heard.append(metadata.get("authorization", ""))
        return continuation(handler_call_details)


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[Header, FakeServer]]:
    header = Header()
    with FakeServer(interceptors=(header,)) as server:
        yield header, server


@pytest.fixture
def heard(listening: tuple[Header, FakeServer], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    header, server = listening
    header.heard.clear()
    monkeypatch.setenv("LORRY_ADDRESS", server.address)
    monkeypatch.delenv("LORRY_TOKEN", raising=False)
    monkeypatch.delenv("LORRY_CA", raising=False)
    return header.heard


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def test_every_command_that_asks_a_server_has_all_options_and_no_token_flag() -> None:
    """Broken: one command cannot reach a server that others can, or shows a token in `ps`."""
    fields = set(inspect.signature(Connection).parameters)
    group: Any = typer.main.get_command(app)
    found = dict(commands(group))
    assert set(found) > LOCAL
    for name, command in found.items():
        options = {option.name for option in command.params}
        assert fields <= options or name in LOCAL, name
        flags = [flag for option in command.params for flag in option.opts]
        assert "--token" not in flags, name


def test_a_token_comes_from_a_file_or_the_environment(
    heard: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a script that has its token in one of the two places is refused."""
    assert main(["adapter", "list"]) == 0
    assert main(["adapter", "list", "--token-file", str(file)]) == 0
    monkeypatch.setenv("LORRY_TOKEN", "lorry_from_environment")
    assert main(["adapter", "show", "a1", "--json"]) == 0
    assert main(["adapter", "delete", "a1", "--token-file", str(file)]) == 0
    file_header = f"Bearer {TOKEN}"
    pages = ["", "", ""]  # of five adapters, two a page
    assert heard == [
        *pages,
        *[file_header] * 3,
        "Bearer lorry_from_environment",
        file_header,
    ], "the file goes before the environment"


def test_the_longest_token_is_read_whole(file: Path) -> None:
    """Broken: a token of the most characters is refused for the end of its line, or cut."""
    longest = "x" * MAX_TOKEN_CHARS
    for written in (longest, f"{longest}\n", f"{longest}\nmore"):
        file.write_text(written)
        assert read_token(file) == longest


def test_a_token_may_come_through_a_pipe(heard: list[str]) -> None:
    """Broken: `--token-file <(pass show lorry)` is refused for its mode, or read twice."""
    reader, writer = os.pipe()
    os.write(writer, TOKEN.encode())
    os.close(writer)
    try:
        assert main(["adapter", "show", "a1", "--token-file", f"/dev/fd/{reader}"]) == 0
    finally:
        os.close(reader)
    assert heard == [f"Bearer {TOKEN}"]


def test_what_cannot_be_used_is_bad_usage_and_nothing_is_sent(
    heard: list[str], file: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Broken: a token that others can read is used, or a wrong file is a traceback."""
    open_to_all, empty = tmp_path / "open", tmp_path / "empty"
    open_to_all.write_text(TOKEN)
    open_to_all.chmod(0o644)
    empty.touch(0o600)
    words_file = tmp_path / "words"
    words_file.write_text("two words")
    words_file.chmod(0o600)
    long_file = tmp_path / "long"
    long_file.write_text("x" * (MAX_TOKEN_CHARS + 1))
    long_file.chmod(0o600)
    pair = make_certificate(tmp_path)
    cases: list[tuple[list[str], str]] = [
        (["--token-file", str(open_to_all)], "chmod 600"),
        (["--token-file", str(empty)], "is empty"),
        (["--token-file", str(tmp_path / "none")], "cannot be read: No such file"),
        (["--token-file", str(tmp_path)], "cannot be read: Is a directory"),
        (["--token-file", str(words_file)], "visible ASCII"),
        (["--token-file", str(long_file)], "longer than a token"),
        (["--token-file", str(file), "--address", "example.org:1"], "unencrypted"),
        (["--ca", str(file)], "not PEM"),
        (["--cert", str(pair.cert)], "key is missing"),
    ]
    for flags, words in cases:
        for command in (["info"], ["generate", "x"], ["adapter", "upload", str(tmp_path)]):
            assert main([*command, *flags]) == 2, (command, flags)
            out, err = capsys.readouterr()
            assert words in err
            assert TOKEN not in out + err
            assert "Traceback" not in err
    assert main(["info", "--json", "--token-file", str(empty)]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "--token-file"
    assert heard == []
