"""A workload as a file: JSON Lines, plain or gzipped, that can be replayed and be trusted.

A header (name, seed, recipe, adapters, how many requests, digest), then a line a request. The
digest is a SHA-256 over all of it; each line carries its first digits as far as that line, so that
an edited or missing line is named. The same workload gives the same bytes. Called by the benches:
results name the workload that they ran by its digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from .check import check_adapters, check_request
from .errors import WorkloadError, must
from .parse import FORMAT, VERSION, parse_header, parse_request
from .records import Workload, WorkloadRequest

_MARK_DIGITS = 8
_MARK = re.compile(r'(.*),"mark":"([0-9a-f]{8})"\}', re.DOTALL)


def write_workload(workload: Workload, path: Path) -> str:
    """Gzipped if the path ends in .gz; the digest."""
    _check(workload)
    digest, lines = _encode(workload)
    data = "".join(f"{line}\n" for line in lines).encode()
    # Neither name nor time of writing get into the file.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return digest


def digest_of(workload: Workload) -> str:
    return _encode(workload)[0]


def read_workload(path: Path) -> Workload:
    try:
        lines = _text_of(path).split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise WorkloadError(f"{path}: {error}") from error
    must(lines[-1] == "", f"{path}, line {len(lines)}: cut off")
    header = parse_header(f"{path}, line 1", lines[0])
    must(
        len(lines) == header.num_requests + 2,
        f"{path}, line {len(lines) - 1}: the last of {len(lines) - 2} requests, not "
        f"{header.num_requests}",
    )
    names = frozenset(adapter.name for adapter in header.adapters)
    running = hashlib.sha256(header.plain.encode())
    requests: list[WorkloadRequest] = []
    after_s = 0.0
    for number, line in enumerate(lines[1:-1], start=2):
        where = f"{path}, line {number}"
        found = _MARK.fullmatch(line)
        if found is None:
            raise WorkloadError(f"{where}: does not end in its mark")
        running.update(found[1].encode())
        mark = running.hexdigest()[:_MARK_DIGITS]
        must(
            found[2] == mark, f"{where}: changed since it was written (mark {found[2]}, not {mark})"
        )
        request = parse_request(where, line)
        check_request(request, where, names=names, after_s=after_s)
        requests.append(request)
        after_s = request.at_s
    digest = running.hexdigest()
    must(header.digest == digest, f"{path}, line 1: digest {header.digest}, not {digest}")
    return Workload(header.name, header.seed, header.recipe, header.adapters, tuple(requests))


def _check(workload: Workload) -> None:
    check_adapters(workload.adapters)
    names = frozenset(adapter.name for adapter in workload.adapters)
    after_s = 0.0
    for i, request in enumerate(workload.requests):
        check_request(request, f"request {i}", names=names, after_s=after_s)
        after_s = request.at_s


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def _encode(workload: Workload) -> tuple[str, list[str]]:
    header: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "name": workload.name,
        "seed": workload.seed,
        "recipe": workload.recipe,
        "adapters": [[item.name, item.rank, item.weight] for item in workload.adapters],
        "num_requests": len(workload.requests),
    }
    running = hashlib.sha256(_dumps(header).encode())
    lines = [""]
    for request in workload.requests:
        plain = _dumps(_tree(request)).removesuffix("}")
        running.update(plain.encode())
        lines.append(f'{plain},"mark":"{running.hexdigest()[:_MARK_DIGITS]}"}}')
    digest = running.hexdigest()
    lines[0] = _dumps({**header, "digest": digest})
    return digest, lines


def _tree(request: WorkloadRequest) -> dict[str, object]:
    tree: dict[str, object] = {
        "at_s": request.at_s,
        "adapter": request.adapter,
        "prompt": request.prompt,
        "num_new_tokens": request.num_new_tokens,
    }
    if request.session >= 0:
        tree |= {"session": request.session, "turn": request.turn}
    tree |= {"ttft_s": request.ttft_s} if request.ttft_s else {}
    tree |= {"tpot_s": request.tpot_s} if request.tpot_s else {}
    return tree


def _dumps(tree: Mapping[str, object]) -> str:
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)
