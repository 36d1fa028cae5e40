"""How fast the simulator is: many requests over many adapters, near what the machine can carry.

Owns the load and the promise, and nothing of how it is simulated: the profile of an A100 with a
7B model, S-LoRA's lengths and its four ranks, adapters by Zipf. Called by command.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ...server.scheduling.policies import FCFS
from ..workload.arrivals import Poisson
from ..workload.lengths import UniformLengths
from ..workload.make import make_workload
from ..workload.popularity import Zipf
from ..workload.ranks import RankMix
from ..workload.settings import WorkloadSettings
from .profile import named_profile
from .simulate import simulate

PROFILE = "a100-7b"
ADAPTERS_PER_REQUEST = 0.1
RATE_PER_S = 7.0
MIN_PER_S = 100_000 / 600  # requests: 100,000 in ten minutes, on one core


@dataclass(frozen=True, slots=True)
class ScaleReport:
    requests: int
    adapters: int
    requests_per_s_simulated: float  # of the machine that simulates
    wall_s: float
    simulated_s: float
    steps: int
    leapt: int  # of those, that were not taken one by one
    profile: str


def failures(report: ScaleReport) -> list[str]:
    if report.requests_per_s_simulated >= MIN_PER_S:
        return []
    return [
        f"speed: {report.requests_per_s_simulated:.0f} requests/s simulated; "
        f"at least {MIN_PER_S:.0f} are needed for 100,000 in ten minutes"
    ]


def run(num_requests: int) -> ScaleReport:
    num_adapters = max(round(num_requests * ADAPTERS_PER_REQUEST), 1)
    workload = make_workload(
        WorkloadSettings(
            name="scale",
            num_requests=num_requests,
            num_adapters=num_adapters,
            rate_per_s=RATE_PER_S,
            arrivals=Poisson(),
            popularity=Zipf(1.0),
            lengths=UniformLengths(),
            ranks=RankMix((64, 32, 16, 8)),
        )
    )
    profile = named_profile(PROFILE)
    began_s = time.perf_counter()
    done = simulate(workload, profile, policy=FCFS)
    wall_s = time.perf_counter() - began_s
    return ScaleReport(
        requests=num_requests,
        adapters=num_adapters,
        requests_per_s_simulated=num_requests / wall_s,
        wall_s=wall_s,
        simulated_s=done.seconds_simulated,
        steps=done.steps,
        leapt=done.leapt,
        profile=PROFILE,
    )
