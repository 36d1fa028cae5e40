"""What a storm came to: the counts while it lasts, the result file, the table.

Knows no server; filled by storm.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from ..proto import lorry_pb2 as pb
from .machine import describe_machine
from .storm_server import Held


@dataclass(slots=True)
class Tally:
    """Of one storm."""

    ready_again_s: list[float]  # of each kill of the engine: until the next one served
    store_again_s: list[float]
    outcomes: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    failures: list[str] = field(default_factory=list[str])
    num_audits: int = 0
    before: Held | None = None  # the front end's, when it had answered its first requests
    after: Held | None = None
    engine_rss_bytes: int = 0  # of the last engine, at the end
    hang_s: float = 0.0  # from a hang of the engine to the next one; 0: not tried
    stats: pb.Stats | None = None  # at the last audit, before all adapters are deleted
    orders: dict[str, str] = field(default_factory=dict[str, str])
    wall_s: float = 0.0

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    @property
    def num_whole(self) -> int:
        return sum(found["whole and right"] for found in self.outcomes.values())


def make_document(tally: Tally, *, num_cases: int, seed: int) -> dict[str, object]:
    stats = tally.stats or pb.Stats()
    return {
        "bench": "storm",
        "pass": not tally.failures,
        "cases": num_cases,
        "seed": seed,
        "seconds": round(tally.wall_s, 1),
        "whole_answers": tally.num_whole,
        "outcomes": {kind: dict(found) for kind, found in tally.outcomes.items()},
        "failures": tally.failures,
        "audits": tally.num_audits,
        "at_the_end": {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "pages_kv": stats.pages_kv,
            "users_of_adapters": sum(one.num_users for one in stats.residents),
            "pages_free_and_adapter": stats.pages_free + stats.pages_adapter,
            "pages_cached": stats.memory.pages_cached,
            "pages_total": stats.pages_total,
            "host_bytes": stats.host_bytes,
        },
        "counters": {
            "engine_restarts": stats.engine_restarts_total,
            "preemptions": stats.preemptions_total,
            "adapter_loads": stats.adapter_loads_total,
            "adapter_evictions": stats.adapter_evictions_total,
            "prefix_hit_tokens": stats.memory.prefix_hit_tokens_total,
            "prefix_evictions": stats.memory.prefix_evictions_total,
            "requests_finished": stats.requests_finished_total,
            "requests_failed": stats.requests_failed_total,
            "requests_cancelled": stats.requests_cancelled_total,
        },
        "ready_after_engine_kill_s": _spread(tally.ready_again_s),
        "ready_after_store_kill_s": _spread(tally.store_again_s),
        "ready_after_engine_hang_s": round(tally.hang_s, 1),
        "front_end_before": asdict(tally.before) if tally.before else None,
        "front_end_after": asdict(tally.after) if tally.after else None,
        "engine_rss_bytes": tally.engine_rss_bytes,
        "orders_of_death": tally.orders,
        "machine": asdict(describe_machine()),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {"median": round(median(seconds), 2), "max": round(max(seconds), 2)}


def show(document: dict[str, object], console: Console) -> None:
    table = Table(title=None)
    table.add_column("What befell whom")
    table.add_column("Outcomes")
    outcomes = document["outcomes"]
    assert isinstance(outcomes, dict)  # made above
    for kind in sorted(outcomes):
        found = sorted(outcomes[kind].items(), key=lambda item: -item[1])
        table.add_row(kind, ", ".join(f"{num} {outcome}" for outcome, num in found))
    console.print(table)
    for key in (
        "at_the_end",
        "counters",
        "ready_after_engine_kill_s",
        "ready_after_store_kill_s",
        "ready_after_engine_hang_s",
        "front_end_before",
        "front_end_after",
        "orders_of_death",
    ):
        console.print(f"{key.replace('_', ' ')}: {document[key]}", highlight=False)
    failures = document["failures"]
    assert isinstance(failures, list)  # made above
    for failure in failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    if not failures:
        console.print(f"{document['audits']} audits, nothing leaked, every answer right")
