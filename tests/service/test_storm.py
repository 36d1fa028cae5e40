"""A short storm over the shared server: `make storm` plays a thousand cases of the same."""

from __future__ import annotations

import asyncio

import pytest

from lorry import AsyncClient
from lorry.bench.storm import Storm
from lorry.bench.storm_asks import LEAST_LONG_TOKENS, Ask, Scene
from lorry.bench.storm_events import SHARES, WHOLE
from lorry.bench.storm_report import Tally
from lorry.bench.storm_server import Victim
from lorry.tests.service_shared import SharedServer

pytestmark = pytest.mark.slow

NUM_CASES = 40
SEED = 4
PROMPTS = ((5, 6, 7), tuple(range(20, 50)))


def make_scene(shared: SharedServer) -> Scene:
    """Short answers of all, long ones of three."""
    lengths = {"": LEAST_LONG_TOKENS, "r8": LEAST_LONG_TOKENS, "patterns": LEAST_LONG_TOKENS}
    asks = [
        Ask(
            name,
            prompt,
            num_new,
            ignore_eos=True,
            tokens=tuple(shared.expected(name, prompt, num_new)),
        )
        for name in ("", *shared.adapter_dirs)
        for num_new in {8, lengths.get(name, 8)}
        for prompt in PROMPTS[: 2 if num_new == 8 else 1]
    ]
    return Scene(tuple(asks), shared.adapter_dirs)


def test_a_short_storm_leaves_nothing_behind(shared: SharedServer):
    """A wrong, lost or hanging answer, a page, a user, a socket or a thread kept: because clients
    left, ran out of time or died, or the engine or the store worker did."""
    before = shared.client.stats()

    async def play() -> Tally:
        async with AsyncClient(shared.address, timeout_s=60) as client:
            victim = Victim(shared.address, shared.process.process.pid)
            storm = Storm(victim, make_scene(shared), client, seed=SEED)
            await storm.play(NUM_CASES)
            return storm.tally

    tally = asyncio.run(play())
    assert not tally.failures, "\n".join(tally.failures)
    assert set(SHARES) | {"engine killed", "store worker killed", "engine frozen"} <= set(
        tally.outcomes
    )
    assert tally.num_whole > 20 and tally.outcomes["load"][WHOLE] > 0
    after = shared.client.stats()
    assert after.engine_restarts_total == before.engine_restarts_total + 1
    assert after.adapter_evictions_total > before.adapter_evictions_total
