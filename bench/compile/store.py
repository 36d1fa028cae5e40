"""Compiled once: what each case came to, kept by the hash of all that could change it.

Owns a folder below build/, a subfolder for each hash, a file for each case and chip. A change of
any kernel, of the reading here, or of Triton gives another hash, so nothing is ever out of date.
Knows neither Triton nor kernels, which must not be imported to find that all is known already.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .binary import Binary
from .judge import CaseTerms

ROOT_DIR = Path(__file__).resolve().parent.parent.parent
BUILD_DIR = ROOT_DIR / "build" / "compile"
SOURCES = (ROOT_DIR / "kernels", ROOT_DIR / "bench" / "compile")


def source_hash(sources: Sequence[Path], *, versions: Sequence[str]) -> str:
    """Over files, and every Python file of folders, by name and content, and the versions."""
    total = hashlib.sha256(repr(tuple(versions)).encode())
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*.py")):
            total.update(f"\0{path.relative_to(source.parent).as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class BinaryStore:
    """See the module. Several processes may use one folder: files appear whole."""

    def __init__(self, folder: Path, source: str) -> None:
        self._folder = folder / source[:16]

    def cases(self) -> list[CaseTerms] | None:
        """Every operator's cases; None if they were never asked for."""
        document = self._read("cases.json")
        return None if document is None else [CaseTerms(**terms) for terms in document["cases"]]

    def put_cases(self, cases: Sequence[CaseTerms]) -> None:
        self._write("cases.json", {"cases": [asdict(terms) for terms in cases]})

    def get(self, name: str, arch: int) -> Binary | None:
        document = self._read(_file_name(name, arch))
        return None if document is None else Binary.from_json(document)

    def put(self, binary: Binary) -> None:
        self._write(_file_name(binary.case, binary.arch), binary.to_json())

    def _read(self, file_name: str) -> dict[str, Any] | None:
        path = self._folder / file_name
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, file_name: str, document: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{file_name}.{os.getpid()}.part"
        part.write_text(json.dumps(document))
        part.replace(self._folder / file_name)


def _file_name(name: str, arch: int) -> str:
    # Two names may give the same letters; the digest keeps their files apart.
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"sm{arch}-{re.sub(r'[^0-9A-Za-z]+', '-', name)[:80]}-{digest}.json"
