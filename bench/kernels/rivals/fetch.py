"""`make peers`: the few files that the bench needs, out of the peers' published wheels.

Owns the download (pip, into a temporary folder) and what is taken out of it. Never imports
what it fetches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from .folder import FOLDER, PEERS, VERSIONS_FILE, Peer


def main() -> int:
    if all(peer.is_there() for peer in PEERS):
        print(f"peers: all there in {FOLDER}")
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    for peer in PEERS:
        with tempfile.TemporaryDirectory(prefix="lorry-peers-") as home:
            wheel = _download(peer, Path(home))
            taken = take(peer, wheel, FOLDER)
        print(f"peers: {len(taken)} files of {peer.wheel} {peer.version}")
    # Written last, so that a folder filled half-way does not pass for a whole one.
    VERSIONS_FILE.write_text(json.dumps({peer.wheel: peer.version for peer in PEERS}) + "\n")
    return 0


def _download(peer: Peer, home: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--platform", peer.platform, "--python-version", "312"),
        *("--dest", str(home), f"{peer.wheel}=={peer.version}"),
    ]
    subprocess.run(command, check=True)
    (wheel,) = home.glob("*.whl")
    return wheel


def take(peer: Peer, wheel: Path, folder: Path) -> list[str]:
    """Unpack the peer's files and its licence; returns their names.

    Raises:
        ValueError: a pattern matches nothing, or a name would leave the folder.
    """
    taken: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for pattern in (*peer.files, peer.licence):
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(f"{wheel.name} has no {pattern}")
            taken.extend(found)
        for name in taken:
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{wheel.name}: {name} would be written outside the folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    return taken


if __name__ == "__main__":
    raise SystemExit(main())
