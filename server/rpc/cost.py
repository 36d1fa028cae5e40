"""The cost model as a message. Pure; called by engine.py.

What is not known is left out: no number stands for it.
"""

from __future__ import annotations

import math

from ...proto import lorry_pb2 as pb
from ..seam import CostReport


def cost_message(report: CostReport) -> pb.CostModel:
    model = report.model
    message = pb.CostModel(
        source=report.source, judged_steps=report.num_steps, learnt_loads=report.num_loads
    )
    if any(model.step_coefs_s):
        for name, seconds in model.named_step_coefs_s().items():
            message.step_coefs.add(name=name, seconds=seconds)
    if not math.isnan(report.r2):
        message.r2 = report.r2
    if not math.isnan(report.mape):
        message.mape = report.mape
    if report.num_loads:
        message.load_s = model.load_s
        if model.load_s_per_byte > 0.0:
            message.load_bytes_per_s = 1.0 / model.load_s_per_byte
    if model.read_s_per_byte > 0.0:
        message.read_bytes_per_s = 1.0 / model.read_s_per_byte
    return message
