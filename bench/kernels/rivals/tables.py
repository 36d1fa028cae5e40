"""The peers' tuned tables: one file that travels, and the folder in which the peers read it.

Owns the folder `tuned` under the git-ignored one, what says for which device and cases it was
tuned, and the file in bench/results that holds all of it: tables come back from a GPU machine as
one file, and the next run there, `make gpu` too, unpacks it. Does not know what a table says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ...machine import ROOT_DIR
from ..inputs import Inputs
from .folder import FOLDER

SHIPPED = ROOT_DIR / "bench" / "results" / "kernels-tuned.json"
TUNED = FOLDER / "tuned"
ABOUT = "about.json"


def ship(path: Path, folder: Path = TUNED) -> None:
    """The folder as one file."""
    files = {
        str(file.relative_to(folder)): json.loads(file.read_text())
        for file in sorted(folder.rglob("*.json"))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(files, indent=1) + "\n")


def unpack(path: Path, folder: Path = TUNED) -> None:
    """The file as the folder; without one the folder stays as it is."""
    if not path.exists():
        return
    clear(folder)
    for name, content in json.loads(path.read_text()).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


def clear(folder: Path = TUNED) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_about(
    device: torch.device, dtype: torch.dtype, cases: Sequence[str], folder: Path = TUNED
) -> None:
    about = {**_here(device, dtype), "cases": list(cases)}
    (folder / ABOUT).write_text(json.dumps(about))


def why_untuned(inputs: Inputs, folder: Path = TUNED) -> str:
    """Why a peer here would not run with tables of this very case; empty: it would."""
    file = folder / ABOUT
    about = json.loads(file.read_text()) if file.exists() else {}
    here = _here(inputs.device, inputs.dtype)
    if any(about.get(key) != value for key, value in here.items()):
        return "no tables tuned on this device; `lorry bench kernels --tune MINUTES` makes them"
    return "" if inputs.case.name in about["cases"] else "its tables were not tuned for this case"


def _here(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What a table is bound to. SGLang looks it up by Triton's version too."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "triton": triton.__version__, "dtype": str(dtype)}
