"""What the wire says of the cost model: what is known, and no number for what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lorry.server.cli import _cost_rows  # pyright: ignore[reportPrivateUsage]
from lorry.server.rpc.cost import cost_message
from lorry.server.scheduling.cost_model import NO_REPORT, CostModel, CostReport
from lorry.server.scheduling.step_work import StepWork

REPORT = CostReport(
    model=CostModel(
        tuple(1e-3 * n for n in range(1, 10)),
        load_s=2e-3,
        load_s_per_byte=2**-32,
        read_s_per_byte=2**-30,
    ),
    source="cached",
    num_steps=1000,
    r2=0.97,
    mape=0.061,
    num_loads=12,
)


def test_a_model_crosses_with_its_names() -> None:
    """Coefficients by place would be other ones once an amount is added."""
    message = cost_message(REPORT)
    assert {coef.name: coef.seconds for coef in message.step_coefs} == pytest.approx(
        dict(zip(StepWork._fields, REPORT.model.step_coefs_s, strict=True))
    )
    assert (message.source, message.judged_steps, message.learnt_loads) == ("cached", 1000, 12)
    assert (message.r2, message.mape, message.load_s) == (0.97, 0.061, 2e-3)
    assert (message.load_bytes_per_s, message.read_bytes_per_s) == (2**32, 2**30)
    assert _cost_rows(message) == [
        (
            "step times",
            "calibrated at an earlier start; the last 1000 were foretold to 6.1% on average, "
            "R2 0.970",
        ),
        ("load times", "2.0 ms and 4.0 GiB/s, learnt from 12; from disk at 1.0 GiB/s"),
    ]


def test_loads_that_all_took_alike_are_not_none() -> None:
    """A server that has loaded a thousand adapters would say that it has loaded none."""
    model = replace(REPORT.model, load_s_per_byte=0.0, read_s_per_byte=0.0)
    message = cost_message(replace(REPORT, model=model))
    assert not message.HasField("load_bytes_per_s")
    assert _cost_rows(message)[1] == ("load times", "2.0 ms, learnt from 12")


def test_what_is_not_known_is_not_said() -> None:
    """Zero is a very good error and a very bad bandwidth; NaN is no JSON."""
    message = cost_message(NO_REPORT)
    assert message.source == "none" and not message.step_coefs
    for name in ("r2", "mape", "load_s", "load_bytes_per_s", "read_bytes_per_s"):
        assert not message.HasField(name), name
    assert _cost_rows(message) == [("step times", "not calibrated"), ("load times", "none yet")]
    assert math.isnan(NO_REPORT.r2)
