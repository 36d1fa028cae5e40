"""How requests whose adapter was not in the pool started, as messages. Pure.

Called by answer.py for one request and by engine.py for all of them.
"""

from __future__ import annotations

from ...proto import lorry_pb2 as pb
from ..seam import ColdStats, StartTold


def start_message(start: StartTold) -> pb.ColdStart:
    return pb.ColdStart(
        way=start.way.name.lower(),
        reason=start.reason,
        predicted_s=start.predicted_s,
        measured_s=start.measured_s,
    )


def cold_message(stats: ColdStats) -> pb.ColdStarts:
    return pb.ColdStarts(
        wait_total=stats.wait,
        stream_total=stats.stream,
        assist_total=stats.assist,
        lost_rows_total=stats.lost_rows,
        helpers_up=stats.helpers_up,
        helper_restarts_total=stats.helper_restarts,
    )
