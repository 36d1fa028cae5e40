"""The workloads of the memory study, and how large a pool and a load they are given.

Three kinds, fixed before anything was tuned on them: `zipf` (each adapter has a system prompt of
its own, popularity by Zipf, single turns), `shifting` (the same, the ranking drawn anew five times
a run) and `turns` (conversations). Each at two scales: of a 7B model on a GPU, simulated, and of
the small model that a CPU serves live. Judged on JUDGED_SEEDS; whatever is tuned is tuned on
TUNING_SEEDS, and on the simulator alone. Knows no server; used by simulated.py and live.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..workload.fit import Scale
from ..workload.lengths import FromTable
from ..workload.make import make_workload
from ..workload.popularity import Popularity, Shifting, Zipf
from ..workload.ranks import RankMix
from ..workload.records import Workload
from ..workload.sessions import Sessions
from ..workload.settings import WorkloadSettings

ZIPF, SHIFTING, TURNS = "zipf", "shifting", "turns"
KINDS = (ZIPF, SHIFTING, TURNS)
JUDGED_SEEDS = (1, 2, 3)
TUNING_SEEDS = (101, 102, 103)
NUM_SHIFTS = 5
# Conversations are fewer adapters' business: a turn waits for the next request of its adapter.
MEAN_TURNS = 5.0


@dataclass(frozen=True, slots=True)
class StudyScale:
    """What the two scales differ in."""

    num_requests: int
    num_adapters: int
    num_adapters_in_turns: int  # of the conversations
    ranks: RankMix
    system_tokens: int
    think_s: float
    scale: Scale  # of the lengths of Azure's conversations


# A 7B model, ranks 8 to 128, as in Chameleon (arXiv 2411.17741); messages as in the preset `chat`,
# answers half as long as Azure's: adapters have tasks, and long instructions get short answers.
SIMULATED = StudyScale(
    num_requests=2000,
    num_adapters=200,
    num_adapters_in_turns=50,
    ranks=RankMix((8, 16, 32, 64, 128)),
    system_tokens=512,
    think_s=20.0,
    scale=Scale(prompt_factor=0.2, answer_factor=0.5, max_model_len=4096),
)
# The model of bench/slo/fleet.py: contexts of 1,024 tokens, and a run of a minute or two. Ranks and
# instructions are such that a fifth of each pool, which `split` keeps for adapters, holds four mean
# adapters and twice the largest (tests/bench/test_memory_scale.py): with less it would be starved.
LIVE = StudyScale(
    num_requests=144,
    num_adapters=48,
    num_adapters_in_turns=16,
    ranks=RankMix((4, 8, 16, 32)),
    system_tokens=320,
    think_s=4.0,
    scale=Scale(prompt_factor=0.05, answer_factor=0.1, max_model_len=1024),
)


def draw(kind: str, size: StudyScale, *, seed: int, rate_per_s: float) -> Workload:
    """Raises:
    ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    popularity: Popularity = Zipf(1.0)
    if kind == SHIFTING:
        span_s = size.num_requests / rate_per_s
        popularity = Shifting(1.0, every_s=span_s / (NUM_SHIFTS + 1))
    alone = WorkloadSettings(
        name=kind,
        seed=seed,
        num_requests=size.num_requests,
        rate_per_s=rate_per_s,
        num_adapters=size.num_adapters,
        popularity=popularity,
        lengths=FromTable("azure-conv"),
        ranks=size.ranks,
        sessions=Sessions(mean_turns=1.0, system_tokens=size.system_tokens),
        scale=size.scale,
    )
    if kind != TURNS:
        return make_workload(alone)
    talks = Sessions(MEAN_TURNS, think_s=size.think_s, system_tokens=size.system_tokens)
    return make_workload(replace(alone, num_adapters=size.num_adapters_in_turns, sessions=talks))
