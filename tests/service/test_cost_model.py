"""A real server learns from what it serves, and says what it has learnt."""

from __future__ import annotations

import pytest

from lorry.server.scheduling.step_work import StepWork
from lorry.tests.service_shared import SPECS, SharedServer

pytestmark = pytest.mark.slow


def test_steps_and_loads_are_learnt(shared: SharedServer) -> None:
    """A meter that is not joined to the engine, or loads that never reach the fit."""
    for spec in SPECS[:4]:  # more than the pool holds
        shared.client.complete("hello", adapter=spec.name, max_new_tokens=24, ignore_eos=True)
    cost = shared.client.stats().cost_model
    assert cost.source in ("calibrated", "cached"), "cached: its engine was killed by a test"
    assert [coef.name for coef in cost.step_coefs] == list(StepWork._fields)
    assert all(coef.seconds >= 0.0 for coef in cost.step_coefs)
    assert any(coef.seconds > 0.0 for coef in cost.step_coefs)
    assert cost.judged_steps > 0 and cost.mape > 0.0 and cost.r2 < 1.0
    assert cost.learnt_loads > 0 and cost.load_s >= 0.0
