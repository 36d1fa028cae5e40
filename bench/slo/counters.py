"""What a server counted: all of its Stats that only grow, by name.

They explain a cell and check it against the client's stamps; they never replace these. Read by
live.py between cells.
"""

from __future__ import annotations

from ...proto import lorry_pb2 as pb

Counters = dict[str, int]  # by the names of Stats
NO_COUNTERS = frozenset({"pages_total"})  # a size


def counters_of(stats: pb.Stats) -> Counters:
    names = [field.name for field in pb.Stats.DESCRIPTOR.fields]
    return {
        name: getattr(stats, name)
        for name in names
        if name.endswith("_total") and name not in NO_COUNTERS
    }


def counted_between(before: Counters, after: Counters) -> Counters:
    return {name: after[name] - before[name] for name in after}
