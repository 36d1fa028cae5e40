"""The file of tokens: what it keeps, what it refuses, and two who change it at once."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.cli import main
from lorry.server.errors import ConfigError
from lorry.server.token_file import MAX_FILE_BYTES, TokenFile
from lorry.server.tokens import (
    MAX_TOKENS,
    Role,
    TokenEntry,
    digest_of,
    is_token,
    new_token,
    read_entries,
    write_entries,
)
from lorry.tests.access_builders import hand_out, make_entry

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)
ENTRIES = st.lists(
    st.builds(
        TokenEntry,
        name=NAMES,
        role=st.sampled_from(Role),
        tenant=NAMES,
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
        created_unix_s=st.floats(0, 1e10),
    ),
    max_size=5,
    unique_by=(lambda entry: entry.name, lambda entry: entry.sha256),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def plain(**overrides: Any) -> dict[str, Any]:
    return {
        "name": "ada",
        "role": "generate",
        "tenant": "acme",
        "sha256": "0" * 64,
        "created_unix_s": 1.0,
    } | overrides


def document(*tokens: Any, **overrides: Any) -> bytes:
    return json.dumps({"format": 1, "tokens": list(tokens)} | overrides).encode()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(entries=ENTRIES)
def test_what_is_written_reads_back(entries: list[TokenEntry]) -> None:
    """Broken: a list that was saved cannot be read, or means something else."""
    assert read_entries(write_entries(entries), what="x") == tuple(entries)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=3))
def test_a_damaged_list_is_refused_whole(cut: int, junk: bytes) -> None:
    """Broken: half a file lets half of the people in, or ends the server."""
    whole = write_entries([make_entry("ada"), make_entry("bob")]).rstrip()
    damaged = whole[: cut % len(whole)] + junk
    with pytest.raises(ConfigError):
        read_entries(damaged, what="x")


SECRET = new_token()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "format"),
        (document(plain(), format=2), "format"),
        (document(plain(), more=1), "no others"),
        (b'{"format": 1, "tokens": [], "tokens": []}', "twice"),
        (document(tokens={}), "must be a list"),
        (document("ada"), r"tokens\[0\] must be an object"),
        (document(plain(), plain(sha256="1" * 64)), "two tokens named ada"),
        (document(plain(), plain(name="bob")), "ada and bob have the same token"),
        (document(plain(role="root")), "one of generate, upload, admin"),
        (document(plain(role=["admin"])), "must be text"),
        (document(plain(role=None)), "must be text"),
        (document(plain(tenant="../x")), r"tokens\[0\].tenant '../x' is not a name"),
        (document(plain(tenant="")), "is not a name"),
        (document(plain(tenant="a\nb")), "is not a name"),
        (document(plain(name="x" * 129)), "at most 128"),
        (document(plain(sha256="0" * 63)), "64 lower-case hex"),
        (document(plain(sha256="A" * 64)), "64 lower-case hex"),
        (document(plain(sha256=SECRET)), "64 lower-case hex"),
        (document(plain(created_unix_s="now")), "must be a number"),
        (document(plain(created_unix_s=True)), "must be a number"),
        (b'{"format": 1, "tokens": [NaN]}', "NaN"),
        (document(plain(created_unix_s=1) | {"scope": "all"}), "no others"),
        (document({"name": "ada"}), "must have the fields"),
        (document(*[plain()] * (MAX_TOKENS + 1)), f"at most {MAX_TOKENS}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_list_of_tokens_is_refused_by_place(data: bytes, reason: str) -> None:
    """Broken: an unknown role or a second entry is read as something; a message shows a secret."""
    with pytest.raises(ConfigError, match=reason) as caught:
        read_entries(data, what="tokens.json")
    assert "tokens.json" in caught.value.message
    assert caught.value.field == "--tokens"
    assert SECRET not in caught.value.message


def test_a_token_is_nowhere_but_with_its_holder(path: Path) -> None:
    """Broken: whoever reads the file, or a log of its entries, can call the server."""
    token = hand_out(path, ada=(Role.ADMIN, "acme"))["ada"]
    assert is_token(token)
    entries, _ = TokenFile(path).read()
    assert [(e.name, e.role, e.tenant) for e in entries] == [("ada", Role.ADMIN, "acme")]
    assert entries[0].sha256 == digest_of(token)
    for leak in (token, token.removeprefix("lorry_")):
        for found in path.parent.iterdir():
            assert leak not in found.read_text()
    assert digest_of(token) not in repr(entries)
    assert len({new_token() for _ in range(100)}) == 100


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666, 0o601])
def test_a_file_that_others_may_read_or_change_is_refused(path: Path, mode: int) -> None:
    """Broken: another user of the machine hands out tokens of this server."""
    hand_out(path, ada=(Role.ADMIN, "acme"))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode is {mode:04o}.*chmod 600"):
        TokenFile(path).read()
    path.chmod(0o640)
    assert len(TokenFile(path).read()[0]) == 1, "a group may read, as where secrets are mounted"


def test_another_users_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: whoever may write into the folder swaps the file for their own."""
    hand_out(path, ada=(Role.ADMIN, "acme"))
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:  # only root gives files away; so this process becomes another
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        TokenFile(path).read()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Broken: a pipe or a device in its place hangs the server, a folder ends it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, reason in (
        (pipe, "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path, "directory|no regular file"),
        (tmp_path / "none", "not there; make it with lorry token create"),
        (tmp_path / "none" / "x", "not there"),
    ):
        with pytest.raises(ConfigError, match=reason):
            TokenFile(path).read()
    huge = tmp_path / "huge"
    huge.touch(0o600)
    os.truncate(huge, MAX_FILE_BYTES + 1)  # no byte of it is on the disk
    with pytest.raises(ConfigError, match=f"at most {MAX_FILE_BYTES}"):
        TokenFile(huge).read()


def test_a_link_is_read_and_never_written_through(tmp_path: Path) -> None:
    """Broken: a link that was planted makes an operator's command overwrite another file."""
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    hand_out(real, ada=(Role.ADMIN, "acme"))
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "victim")
    assert len(TokenFile(link).read()[0]) == 1, "orchestrators mount secrets as links"
    for path in (link, dangling):
        with pytest.raises(ConfigError, match="symbolic link"):
            hand_out(path, eve=(Role.ADMIN, "acme"))
    assert link.is_symlink()
    assert len(TokenFile(real).read()[0]) == 1
    assert not (tmp_path / "victim").exists()


def test_a_change_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a failed command loses everybody's tokens, or litters the folder."""
    hand_out(path, ada=(Role.ADMIN, "acme"))
    before = path.read_bytes()

    def fail(entries: Any) -> Any:
        raise ConfigError("no")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="no"):
        TokenFile(path).change(fail)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="cannot be changed: No space left"):
            hand_out(path, bob=(Role.ADMIN, "acme"))
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]
    path.chmod(0o640)
    hand_out(path, bob=(Role.ADMIN, "acme"))
    assert path.stat().st_mode & 0o777 == 0o640, "the rights its owner gave it stay"


def test_two_changes_at_once_never_lose_one(path: Path) -> None:
    """Broken: a token that was revoked comes back with the next one that is created."""
    hand_out(path, ada=(Role.ADMIN, "acme"))
    inside, go_on = threading.Event(), threading.Event()

    def slow(entries: Any) -> Any:
        inside.set()
        go_on.wait(10)
        return tuple(replace(entry, tenant="slow") for entry in entries)

    thread = threading.Thread(target=TokenFile(path).change, args=(slow,))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ConfigError, match="another command is changing"):
        hand_out(path, bob=(Role.ADMIN, "acme"))
    go_on.set()
    thread.join(10)
    hand_out(path, bob=(Role.ADMIN, "acme"))
    assert [(e.name, e.tenant) for e in TokenFile(path).read()[0]] == [
        ("ada", "slow"),
        ("bob", "acme"),
    ]


def test_the_stamp_of_a_file_changes_with_all_that_matters(path: Path) -> None:
    """Broken: a server does not notice a revocation, or a file that was opened to others."""
    file = TokenFile(path)
    assert file.stamp() is None
    hand_out(path, ada=(Role.ADMIN, "acme"))
    stamps = [file.stamp()]
    assert file.read()[1] == stamps[0]
    hand_out(path, bob=(Role.ADMIN, "acme"))
    stamps.append(file.stamp())
    path.chmod(0o644)
    stamps.append(file.stamp())
    assert len(set(stamps)) == 3


Captured = pytest.CaptureFixture[str]


def test_the_command_line_creates_lists_and_revokes(path: Path, capsys: Captured) -> None:
    """Broken: the token is printed with something else, or shown again later."""
    file = ["--tokens", str(path)]
    create = ["token", "create", *file, "--name", "ci", "--role", "upload", "--tenant", "acme"]
    assert main(create) == 0
    out, err = capsys.readouterr()
    token = out.removesuffix("\n")
    assert is_token(token)
    assert token not in err
    (entry,) = TokenFile(path).read()[0]
    assert (entry.name, entry.role, entry.tenant) == ("ci", Role.UPLOAD, "acme")
    assert entry.sha256 == digest_of(token)
    assert path.stat().st_mode & 0o777 == 0o600
    for listing in (["token", "list", *file], ["token", "list", *file, "--json"]):
        assert main(listing) == 0
        out, _ = capsys.readouterr()
        assert "ci" in out and "upload" in out and "acme" in out
        assert token not in out and entry.sha256 not in out
    (listed,) = json.loads(out)["tokens"]
    assert listed.keys() == TokenEntry.__dataclass_fields__.keys() - {"sha256"}
    assert main(["token", "create", *file, "--name", "x", "--role", "generate", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert is_token(made["token"]) and made["tenant"] == "default"
    assert main(["token", "revoke", "ci", *file]) == 0
    assert [e.name for e in TokenFile(path).read()[0]] == ["x"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("create --name ada --role generate", "has a token named ada"),
        ("create --name ../x --role generate", "is not a name"),
        ("create --name x --role root", "one of generate, upload, admin"),
        ("create --name x --role generate --tenant a/b", "is not a name"),
        ("revoke nobody", "has no token named nobody"),
        ("create --name x", "--role"),
    ],
)
def test_a_refused_command_changes_nothing(
    path: Path, capsys: Captured, command: str, reason: str
) -> None:
    """Broken: a mistyped command exits 0, prints a token that does not work, or harms the file."""
    hand_out(path, ada=(Role.ADMIN, "acme"))
    before = path.read_bytes()
    assert main(["token", *command.split(), "--tokens", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert "Traceback" not in err
    assert path.read_bytes() == before


def test_revoking_makes_no_file(path: Path, capsys: Captured) -> None:
    """Broken: a mistyped path is made, and the token that was to be revoked lives on."""
    for command in (["revoke", "ada"], ["list"]):
        assert main(["token", *command, "--tokens", str(path)]) == 2
        assert "is not there" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []
