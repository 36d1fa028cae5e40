"""One architecture, every precision and every setting: what was found of it.

Owns the round of one case. fp32 is judged by tokens through the engine, 16 bits by their logits
over pages. Knows no table and no file; called by `make exact`, in one of its processes.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from ...server.errors import ModelRefused
from ...server.execution.selfproof import prove
from ..fuzz_world import WrongToken
from .cases import Case
from .rounding import Rounding, measure_rounding
from .serving import Unserved, serve, settings_of
from .verdict import Hollow, Verdict, judge
from .world import CaseWorld

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of one architecture."""

    case: Case
    architecture: str
    facts: dict[str, object]  # of the model, for the README's table
    tokens: dict[str, Verdict]  # by setting, fp32
    rounding: dict[str, Rounding]  # by dtype
    failures: list[str]

    def to_json(self) -> dict[str, object]:
        return {
            "case": self.case.label,
            "architecture": self.architecture,
            "shows": self.case.shows,
            **self.facts,
            "tokens": {name: asdict(verdict) for name, verdict in self.tokens.items()},
            "rounding": {name: found.to_json() for name, found in self.rounding.items()},
            "failures": self.failures,
        }


def prepare_process() -> None:
    """For a process that examines."""
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)  # the models are tiny


def examine(case: Case, device: str = "cpu") -> Outcome:
    """All precisions and settings of one case; a failure is noted and the rest goes on."""
    tokens: dict[str, Verdict] = {}
    rounding: dict[str, Rounding] = {}
    failures: list[str] = []
    with _Home(case, torch.float32, device) as world:
        loaded = world.loaded
        facts: dict[str, object] = {
            "kv_heads": loaded.geometry.num_kv_heads,
            "head_dim": loaded.geometry.head_dim,
            "max_window": loaded.max_window,
            "sites": len(loaded.image_spec.sites),
            "packed": world.num_packed,
        }
        try:
            facts["self_proof"] = prove(world.packed)
        except ModelRefused as error:
            failures.append(str(error))
        for setting in settings_of(device):
            try:
                tokens[setting.name] = judge(world, serve(world, setting), setting)
            except (WrongToken, Hollow, Unserved) as error:
                failures.append(f"{setting.name}: {type(error).__name__}: {error}")
    for name, dtype in LOW.items():
        with _Home(case, dtype, device) as world:
            rounding[name] = found = measure_rounding(world)
            failures += [f"{name}: {failure}" for failure in found.failures()]
    return Outcome(case, loaded.architecture, facts, tokens, rounding, failures)


class _Home:
    """A world in a directory of its own, gone afterwards."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lorry-exact-")
        self._world = CaseWorld(case, Path(self._directory.name), dtype=dtype, device=device)

    def __enter__(self) -> CaseWorld:
        return self._world

    def __exit__(self, *_: object) -> None:
        self._world.close()
        self._directory.cleanup()
