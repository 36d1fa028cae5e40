"""The file of tokens: read with suspicion, changed whole or not at all.

Owns who may touch the file and how a change reaches the disk. A file that somebody else could
have written decides nothing. Knows no calls; read by the server (rpc/access.py), changed by
`lorry token` (cli_token.py), which may both run at once.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .tokens import FLAG, TokenEntry, read_entries, write_entries

MAX_FILE_BYTES = 4 << 20  # ten thousand tokens take about 2.5 MiB
# The group may read, as where an orchestrator mounts secrets; nobody but the owner may write.
FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO

Entries = tuple[TokenEntry, ...]


@dataclass(frozen=True, slots=True)
class Stamp:
    """Differs whenever the file may differ: replaced, written to, or given other rights."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class TokenFile:
    """Holds nothing open between calls."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp | None:
        """None where no file can be seen."""
        try:
            return _stamp(self.path.stat())
        except OSError:
            return None

    def read(self) -> tuple[Entries, Stamp]:
        """The entries, and the stamp of the file they were in.

        Raises:
            ConfigError: there is no file, it is not the operator's alone, or not a list of tokens.
        """
        # Not blocking: opening a pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            with os.fdopen(os.open(self.path, flags), "rb") as file:
                found = os.fstat(file.fileno())
                self._check(found)
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{FLAG} is {self.path}, which is not there; make it with "
                f"lorry token create {FLAG} {self.path} --name NAME --role ROLE",
                field=FLAG,
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{FLAG} is {self.path}, which cannot be read: {error.strerror}", field=FLAG
            ) from error
        if len(data) > MAX_FILE_BYTES:
            raise self._too_long(len(data))
        return read_entries(data, what=f"{FLAG} {self.path}"), _stamp(found)

    def change(self, edit: Callable[[Entries], Entries]) -> None:
        """Puts `edit(entries)` in the file's place; a file that is not there is made.

        Raises:
            ConfigError: the file cannot be read or written, or is being changed by another.
        """
        if self.path.is_symlink():
            raise ConfigError(
                f"{FLAG} is {self.path}, a symbolic link; name the file itself to change it",
                field=FLAG,
            )
        try:
            with self._locked():
                before = self.path.stat() if self.path.exists() else None
                entries: Entries = self.read()[0] if before is not None else ()
                self._replace(write_entries(edit(entries)), before)
        except OSError as error:
            raise ConfigError(
                f"{FLAG} is {self.path}, which cannot be changed: {error.strerror}", field=FLAG
            ) from error

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{FLAG} is {self.path}, which is no regular file", field=FLAG)
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{FLAG} is {self.path}, which belongs to user {found.st_uid}; it must be this "
                f"user's ({os.geteuid()}) or root's",
                field=FLAG,
            )
        if found.st_mode & FORBIDDEN_MODE:
            raise ConfigError(
                f"{FLAG} is {self.path}, whose mode is {stat.S_IMODE(found.st_mode):04o}: others "
                f"may read or change it; chmod 600 {self.path}",
                field=FLAG,
            )
        if found.st_size > MAX_FILE_BYTES:
            raise self._too_long(found.st_size)

    def _too_long(self, size_bytes: int) -> ConfigError:
        return ConfigError(
            f"{FLAG} is {self.path}, which has {size_bytes} bytes or more; at most "
            f"{MAX_FILE_BYTES} are read",
            field=FLAG,
        )

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Two changes at once would each put back what the other took out."""
        lock = self.path.with_name(self.path.name + ".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise ConfigError(
                f"{FLAG} is {self.path}, which another command is changing; try again", field=FLAG
            ) from error
        finally:
            os.close(descriptor)

    def _replace(self, data: bytes, before: os.stat_result | None) -> None:
        """A reader sees the old file or the new one; after a power failure it is one of the two."""
        if len(data) > MAX_FILE_BYTES:
            raise self._too_long(len(data))
        folder = self.path.parent
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                if before is not None:  # root may keep another user's file
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
