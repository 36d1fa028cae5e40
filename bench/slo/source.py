"""Where the workload of a run comes from: drawn for the fleet's model, a preset, or a file.

Owns the default: lengths of the Azure conversation trace scaled to a model of 1,024 tokens on a
CPU, adapters by Zipf whose ranks have nothing to do with how popular they are, a tenth of the
requests to the base, one a second; rates.py runs it faster. A preset keeps all its own but a scale
that is not for as small a model. Called by command.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..workload.file import read_workload
from ..workload.fit import Scale
from ..workload.lengths import FromTable
from ..workload.make import make_workload
from ..workload.popularity import Zipf
from ..workload.presets import find_preset
from ..workload.ranks import MIXES
from ..workload.records import Workload
from ..workload.settings import WorkloadSettings
from .fleet import SHAPE

# Prompts then have 104 tokens at the median and 413 at P99, answers 26 and 153.
PROMPT_FACTOR, ANSWER_FACTOR = 0.1, 0.2
DEFAULT = WorkloadSettings(
    name="slo-mixed",
    num_requests=240,
    num_adapters=64,
    base_share=0.1,
    popularity=Zipf(1.0),
    lengths=FromTable("azure-conv"),
    ranks=MIXES["deployments"],
    scale=Scale(PROMPT_FACTOR, ANSWER_FACTOR, max_model_len=SHAPE.max_len),
)


@dataclass(frozen=True, slots=True)
class Source:
    preset: str = ""  # of PRESETS; empty: the default
    file: Path | None = None  # replayed as it stands; nothing below counts then
    num_requests: int = DEFAULT.num_requests
    num_adapters: int = 0  # 0: as many as the settings say
    seed: int = 0


def take_workload(source: Source) -> Workload:
    """Raises:
    WorkloadError: there is no such preset, or the file is none of a workload.
    """
    if source.file is not None:
        return read_workload(source.file)
    settings = find_preset(source.preset) if source.preset else DEFAULT
    fits = 0 < settings.scale.max_model_len <= SHAPE.max_len
    return make_workload(
        replace(
            settings,
            num_requests=source.num_requests,
            span_s=0.0,
            num_adapters=source.num_adapters or settings.num_adapters,
            seed=source.seed,
            scale=settings.scale if fits else DEFAULT.scale,
        )
    )
