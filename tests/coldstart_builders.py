"""A study of cold starts without a server: each label has a time of its own for a first token."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lorry.bench.coldstart.document import Report
from lorry.bench.coldstart.send import Answered
from lorry.bench.coldstart.sizes import (
    AGAIN,
    ASSIST,
    AUTO,
    BURST,
    CACHED,
    IDEALS,
    S3,
    SHOWN_POINT,
    SINGLE,
    STREAM,
    WAIT,
    Point,
    Row,
    Sizes,
)
from lorry.bench.coldstart.study import Link, Probe, Study, run_study
from lorry.bench.coldstart.told import Told
from lorry.bench.coldstart.workloads import is_bystander
from lorry.bench.slo.counters import Counters
from lorry.bench.slo.stamps import Run
from lorry.bench.workload.records import Workload
from lorry.tests.slo_builders import MACHINE, make_stamps

# Seconds to a first token: what a run would show that meets its targets.
TIMES = {CACHED: 0.1, AGAIN: 0.101, WAIT: 0.15, STREAM: 0.12, ASSIST: 0.106, AUTO: 0.106}
SMALL = Sizes(
    rows=(Row(S3, 0.35, 2), Row(BURST, 0.35, 1), Row(S3, 1.0, 1), Row(SINGLE, 1.0, 2)),
    num_s3=6,
    num_burst=4,
    points=(Point(8, 32), SHOWN_POINT),
    num_bystander_tokens=5,
    num_burst_tokens=5,
    num_prefills=3,
)


@dataclass
class FakeStage:
    world: FakeWorld
    link: Link
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def prepare(self, label: str, workload: Workload, *, on_disk: bool) -> None:
        self.asked.append(("prepare on disk" if on_disk else "prepare", label))

    def settle(self, label: str) -> Counters:
        self.asked.append(("settle", label))
        return {"requests_finished_total": 1000 * len(self.asked)}

    def send(self, label: str, workload: Workload) -> Answered:
        self.asked.append(("send", label))
        self.world.sent.append((label, workload))
        late_s, self.world.num_late = (
            (1.0, self.world.num_late - 1) if self.world.num_late else (0.0, 0)
        )
        stamps, told = [], []
        for idx, one in enumerate(workload.requests):
            beside = is_bystander(one)
            wait_s = 0.01 if beside else self.world.times_s[label]
            gap_s = self.world.gaps_s.get(label, 0.02)
            first_s = one.at_s + wait_s
            pieces = [first_s + gap_s * place for place in range(one.num_new_tokens)]
            stamps.append(make_stamps(idx, one.at_s, pieces, sent_s=one.at_s + late_s))
            is_warm = beside or label in IDEALS
            way = "" if is_warm else self.world.ways.get(label, label)
            told.append(Told(way, "made", 0.1, 0.2, 0.01, 0.0, wait_s - 0.01, wait_s))
        return Answered(Run(label, tuple(stamps)), tuple(told))

    def loads_s(self, label: str, workload: Workload) -> Mapping[str, float]:
        return {} if label in IDEALS else {one.name: 0.05 for one in workload.adapters}


@dataclass
class FakeWorld:
    times_s: Mapping[str, float] = field(default_factory=lambda: dict(TIMES))
    ways: Mapping[str, str] = field(default_factory=lambda: {AUTO: ASSIST})
    gaps_s: Mapping[str, float] = field(default_factory=dict[str, float])  # between tokens
    num_late: int = 0  # sends to come whose sender is late
    stages: list[FakeStage] = field(default_factory=list[FakeStage])
    sent: list[tuple[str, Workload]] = field(default_factory=list[tuple[str, Workload]])

    def probe(self) -> Probe:
        return Probe(prefill_s=0.1, capacity_per_s=10.0)

    @contextmanager
    def stage(self, ratio: float, prefill_s: float) -> Generator[FakeStage]:
        self.stages.append(FakeStage(self, Link(ratio, 1000 / (ratio * prefill_s), 1000)))
        yield self.stages[-1]


def make_study(sizes: Sizes = SMALL, **world: Any) -> Study:
    return run_study(sizes, FakeWorld(**world), tell=lambda _: None)


def make_report(study: Study | None = None, **changes: Any) -> Report:
    report = Report(
        command="lorry bench coldstart",
        is_quick=False,
        sizes=SMALL,
        study=study or make_study(),
        model="a Llama; small",
        setting={"flags": ["--threads", "1"], "adapter_bytes": 5_000_000},
        machine=MACHINE,
        load_before=0.1,
        wall_s=60.0,
    )
    return replace(report, **changes)
