"""Adapters and requests come and go on a real server; pages come back, answers stay right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorry import AsyncClient, Client
from lorry.proto.errors import DeadlineExceeded, NotFound
from lorry.tests.builders import (
    EOS_ID,
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
    make_tokenizer,
)
from lorry.tests.parity import assert_same_tokens
from lorry.tests.service_builders import running_server

pytestmark = pytest.mark.slow

NUM_ADAPTERS = 4
LONG = 400  # tokens: long enough to be met while it runs


@dataclass(frozen=True, slots=True)
class Served:
    client: Client
    model_dir: Path
    adapters: list[Path]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("lifecycle")
    model_dir = make_llama(home / "model")
    reference = load_reference(model_dir)
    adapters = [
        make_adapter(reference, home / "adapters", AdapterSpec(f"a{i}", rank=4 + i, seed=i))
        for i in range(NUM_ADAPTERS)
    ]
    flags = ["--pool-bytes", "1MiB", "--max-running", "32", "--debug"]
    with (
        running_server(model_dir, home / "store", *flags) as server,
        Client(server.address, timeout_s=120) as client,
    ):
        yield Served(client, model_dir, adapters)
        assert server.stop() == 0, "".join(server.output)


def ids(text: str) -> list[int]:
    return make_tokenizer().encode(text)


def test_a_hundred_uploads_at_once_under_traffic_all_answer(served: Served):
    """Loads that fail, or mix adapters up, because others load beside them."""

    async def hammer() -> dict[str, list[int]]:
        async with AsyncClient(served.client.address, timeout_s=120) as client:

            async def one(idx: int) -> tuple[str, list[int]]:
                name = f"many-{idx}"
                await client.adapters.upload(served.adapters[idx % NUM_ADAPTERS], name)
                answer = await client.complete("hello", adapter=name, max_new_tokens=8)
                return name, list(answer.token_ids)

            return dict(await asyncio.gather(*[one(idx) for idx in range(100)]))

    answers = asyncio.run(hammer())
    assert len(answers) == 100
    for i, adapter in enumerate(served.adapters):
        model = load_peft(served.model_dir, adapter)
        expected = generate(model, ids("hello"), 8)
        for idx in range(i, 100, NUM_ADAPTERS):
            answer = answers[f"many-{idx}"]
            assert_same_tokens(
                model, ids("hello"), answer, expected, max_new_tokens=8, stop_ids={EOS_ID}
            )


def test_a_replaced_adapter_answers_anew_and_finishes_the_old(served: Served):
    """A stream that changes its weights half-way, or a new upload that is not used."""
    client = served.client
    client.adapters.upload(served.adapters[0], "swap")
    old_alone = client.complete("x", adapter="swap", max_new_tokens=LONG, ignore_eos=True)
    stream = client.generate("x", adapter="swap", max_new_tokens=LONG, ignore_eos=True)
    next(iter(stream))
    card = client.adapters.upload(served.adapters[1], "swap")
    new = client.complete("x", adapter="swap", max_new_tokens=8)
    for _ in stream:
        pass
    assert card.version == 2 and new.adapter_version == 2
    assert stream.final.adapter_version == 1
    assert stream.final.token_ids == old_alone.token_ids
    model = load_peft(served.model_dir, served.adapters[1])
    expected = generate(model, ids("x"), 8)
    assert_same_tokens(
        model, ids("x"), new.token_ids, expected, max_new_tokens=8, stop_ids={EOS_ID}
    )


def test_a_deleted_adapter_finishes_its_streams_and_gives_its_pages_back(served: Served):
    """Unload that never frees, or that cuts a running answer off."""
    client = served.client
    client.adapters.upload(served.adapters[2], "gone")
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
    assert stats.pages_free + stats.pages_adapter == stats.pages_total


def test_whoever_leaves_or_runs_out_of_time_gives_pages_back(served: Served):
    """KV of clients that are gone."""
    client = served.client
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
    assert stats.preemptions_total == 0
