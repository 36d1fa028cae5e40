"""Adapters and requests come and go on a real server; pages come back, answers stay right."""

from __future__ import annotations

import asyncio

import pytest

from lorry import AsyncClient
from lorry.proto.errors import DeadlineExceeded, NotFound
from lorry.tests.service_shared import SharedServer

pytestmark = pytest.mark.slow

LONG = 400  # tokens: long enough to be met while it runs
NAMES = ("r1", "r5-attention", "r8", "patterns")


def test_a_hundred_uploads_at_once_under_traffic_all_answer(shared: SharedServer):
    """Loads that fail, or mix adapters up, because others load beside them."""

    async def hammer() -> dict[str, list[int]]:
        async with AsyncClient(shared.address, timeout_s=120) as client:

            async def one(idx: int) -> tuple[str, list[int]]:
                name = f"many-{idx}"
                folder = shared.adapter_dirs[NAMES[idx % len(NAMES)]]
                await client.adapters.upload(folder, name)
                answer = await client.complete("hello", adapter=name, max_new_tokens=8)
                return name, list(answer.token_ids)

            return dict(await asyncio.gather(*[one(idx) for idx in range(100)]))

    answers = asyncio.run(hammer())
    assert len(answers) == 100
    for idx in range(100):
        shared.check(NAMES[idx % len(NAMES)], "hello", answers[f"many-{idx}"], 8)


def test_a_replaced_adapter_answers_anew_and_finishes_the_old(shared: SharedServer):
    """A stream that changes its weights half-way, or a new upload that is not used."""
    client = shared.client
    client.adapters.upload(shared.adapter_dirs["r1"], "swap")
    old_alone = client.complete("x", adapter="swap", max_new_tokens=LONG, ignore_eos=True)
    stream = client.generate("x", adapter="swap", max_new_tokens=LONG, ignore_eos=True)
    next(iter(stream))
    card = client.adapters.upload(shared.adapter_dirs["r5-attention"], "swap")
    new = client.complete("x", adapter="swap", max_new_tokens=8)
    for _ in stream:
        pass
    assert card.version == 2 and new.adapter_version == 2
    assert stream.final.adapter_version == 1
    assert stream.final.token_ids == old_alone.token_ids
    shared.check("r5-attention", "x", new.token_ids, 8)


def test_a_deleted_adapter_finishes_its_streams_and_gives_its_pages_back(shared: SharedServer):
    """Unload that never frees, or that cuts a running answer off."""
    client = shared.client
    client.adapters.upload(shared.adapter_dirs["r8"], "gone")
    stream = client.generate("x", adapter="gone", max_new_tokens=LONG, ignore_eos=True)
    next(iter(stream))
    client.adapters.delete("gone")
    with pytest.raises(NotFound, match="gone"):
        client.complete("x", adapter="gone")
    assert "gone" in {resident.name for resident in client.stats().residents}
    for _ in stream:
        pass
    assert len(stream.final.token_ids) == LONG
    stats = client.stats()
    assert "gone" not in {resident.name for resident in stats.residents}
    assert stats.pages_kv == 0
    idle = stats.pages_free + stats.memory.pages_cached
    assert idle + stats.pages_adapter == stats.pages_total


def test_whoever_leaves_or_runs_out_of_time_gives_pages_back(shared: SharedServer):
    """KV of clients that are gone."""
    client = shared.client
    stream = client.generate("x", max_new_tokens=LONG, ignore_eos=True)
    next(iter(stream))
    assert client.stats().pages_kv > 0
    stream.close()
    with pytest.raises(DeadlineExceeded):
        client.complete("x", max_new_tokens=LONG, ignore_eos=True, timeout_s=0.1)
    # Whatever is asked next stands behind the cancel in the engine's queue.
    client.complete("x", max_new_tokens=1)
    stats = client.stats()
    assert stats.num_running == 0 and stats.pages_kv == 0
