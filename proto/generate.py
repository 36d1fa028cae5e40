"""Generates the wire's Python code from lorry.proto, or checks that it is current.

`python -m lorry.proto.generate` writes, `--check` compares and exits 1 on a difference. Needs
grpcio-tools of the version that pyproject pins (it decides the gencode, and so the oldest
runtime that accepts it); nothing that serves imports this file. Called by `make check`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = "lorry.proto"
OUTPUTS = ("lorry_pb2.py", "lorry_pb2.pyi", "lorry_pb2_grpc.py")
# protoc's plugin assumes that its output lies on the import path; ours lies in a package.
ABSOLUTE_IMPORT = "import lorry_pb2 as lorry__pb2"
RELATIVE_IMPORT = "from . import lorry_pb2 as lorry__pb2"


class GenerateError(Exception):
    """The compiler is missing, refused the file, or wrote something unexpected."""


def generate() -> dict[str, str]:
    """Text of every generated file, by file name. Writes nothing into the package.

    Raises:
        GenerateError: says what the compiler did instead.
    """
    try:
        from grpc_tools import protoc
    except ImportError as error:
        raise GenerateError("grpcio-tools is not installed: pip install 'lorry[dev]'") from error
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "protoc",
            f"-I{HERE}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            f"--grpc_python_out={folder}",
            SOURCE,
        ]
        status = protoc.main(arguments)
        if status != 0:
            raise GenerateError(f"protoc refused {SOURCE} with status {status}")
        texts = {name: (Path(folder) / name).read_text(encoding="utf-8") for name in OUTPUTS}
    service = texts["lorry_pb2_grpc.py"]
    if service.count(ABSOLUTE_IMPORT) != 1:
        raise GenerateError(f"expected one line {ABSOLUTE_IMPORT!r} in lorry_pb2_grpc.py")
    texts["lorry_pb2_grpc.py"] = service.replace(ABSOLUTE_IMPORT, RELATIVE_IMPORT)
    return texts


def stale(texts: dict[str, str], folder: Path = HERE) -> list[str]:
    """Names of the files in `folder` that are missing or differ from `texts`."""
    return [
        name
        for name, text in texts.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lorry.proto.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; 1 if they differ")
    check: bool = parser.parse_args(argv).check
    try:
        texts = generate()
    except GenerateError as error:
        print(error, file=sys.stderr)
        return 1
    names = stale(texts)
    if check:
        for name in names:
            print(
                f"proto/{name} is not what {SOURCE} gives: run python -m lorry.proto.generate",
                file=sys.stderr,
            )
        return 1 if names else 0
    for name in names:
        (HERE / name).write_text(texts[name], encoding="utf-8")
    print(f"wrote {', '.join(names)}" if names else "already current")
    return 0


if __name__ == "__main__":
    sys.exit(main())
