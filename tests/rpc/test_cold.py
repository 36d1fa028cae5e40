"""How a request started, and how many did so, on their way to the client and to Prometheus."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto.completion import ColdStart, Transcript
from lorry.server.cli import _cold_row  # pyright: ignore[reportPrivateUsage]
from lorry.server.cli_generate import _usage_line  # pyright: ignore[reportPrivateUsage]
from lorry.server.metrics import COLD_WAYS, EngineCollector
from lorry.server.rpc.answer import Answer
from lorry.server.rpc.cold import cold_message
from lorry.server.scheduling.starts import StartTold, Way
from lorry.server.seam import ColdStats, Finish, SamplingParams, Submit
from lorry.tests.rpc_builders import make_finish, make_stats, make_text

SUBMIT = Submit(
    request_id=1,
    tenant="default",
    adapter=None,
    prompt_ids=(5,),
    max_new_tokens=9,
    sampling=SamplingParams(),
    stop_ids=frozenset(),
    ttft_s=1.0,
    tpot_s=1.0,
    timeout_s=9.0,
)


def final_of(finish: Finish) -> pb.GenerateResponse:
    answer = Answer(0, SUBMIT, text=make_text(), stops=None, arrived_s=0.0)
    (*_, final) = answer.end(finish)
    return final


def test_a_cold_start_is_told_to_the_client_and_a_warm_one_is_not():
    """A client that cannot tell why its first token took long."""
    finish = make_finish(SUBMIT, 1)
    told = StartTold(Way.ASSIST, "helpers keep up", predicted_s=0.25, measured_s=0.5)
    for start, expected in (
        (None, None),
        (told, ColdStart("assist", "helpers keep up", 0.25, 0.5)),
    ):
        transcript = Transcript()
        transcript.add(final_of(replace(finish, start=start)))
        (completion,) = transcript.completions()
        assert completion.usage.cold_start == expected
        line = _usage_line(completion)
        assert ("assist for the adapter (helpers keep up), " in line) == (start is not None)


@pytest.mark.parametrize("way", [Way.WAIT, Way.STREAM, Way.ASSIST])
def test_every_way_has_its_name_on_the_wire(way: Way):
    """The bench counts starts by these names."""
    start = StartTold(way, "because", 0.0, 1.0)
    response = final_of(replace(make_finish(SUBMIT, 1), start=start))
    assert response.final.usage.cold_start.way == way.name.lower()
    assert way.name.lower() in COLD_WAYS


STATS = ColdStats(wait=1, stream=2, assist=3, lost_rows=4, helpers_up=5, helper_restarts=6)


def test_counts_keep_their_names():
    """Two counters that change places."""
    message = cold_message(STATS)
    assert (message.wait_total, message.stream_total, message.assist_total) == (1, 2, 3)
    assert (message.lost_rows_total, message.helpers_up) == (4, 5)
    assert message.helper_restarts_total == 6


def test_info_tells_how_requests_start():
    """An operator who asks why nobody is assisted, and cannot see that helpers keep dying."""
    served = pb.Info(cold_start="--cold-start auto: 2 helpers")
    stats = pb.Stats(cold_starts=cold_message(STATS))
    assert _cold_row(served, stats) == (
        "--cold-start auto: 2 helpers; 1 waited, 2 streamed, 3 assisted, "
        "4 parts of steps lost, 5 helpers up (6 restarts)"
    )
    idle = _cold_row(pb.Info(cold_start="--cold-start wait"), pb.Stats())
    assert idle == "--cold-start wait; 0 waited, 0 streamed, 0 assisted"


class _Front:
    """What the collector reads, with an engine that answers at once."""

    serving, uptime_s, engine_restarts = True, 1.0, 0

    @property
    def engine(self) -> _Front:
        return self

    async def stats(self, *, pages: bool) -> object:
        assert not pages
        return make_stats(cold=STATS)


def test_prometheus_has_a_bounded_label_for_the_ways():
    """A label per adapter, or ways that cannot be told apart."""

    async def scrape() -> dict[tuple[str, str], float]:
        front, loop = _Front(), asyncio.get_running_loop()
        collector = EngineCollector(front, loop)  # pyright: ignore[reportArgumentType]
        families = await asyncio.to_thread(lambda: list(collector.collect()))
        samples = [sample for family in families for sample in family.samples]
        return {(one.name, one.labels.get("way", "")): one.value for one in samples}

    found = asyncio.run(scrape())
    assert [found["lorry_cold_starts_total", way] for way in COLD_WAYS] == [1, 2, 3]
    assert found["lorry_cold_lost_rows_total", ""] == 4
    assert (found["lorry_helpers_up", ""], found["lorry_helper_restarts_total", ""]) == (5, 6)
