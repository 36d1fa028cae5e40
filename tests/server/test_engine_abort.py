"""The engine under `slora`: who is given up hears of it, and nobody's step is disturbed."""

import grpc
import pytest

from lorry.bench.zoo.model import base_dir
from lorry.server.errors import GivenUp, Overloaded
from lorry.server.rpc.status import answer_for
from lorry.server.scheduling.policies import SLORA
from lorry.server.seam import Finish
from lorry.tests.engine_bench import PROMPT, make_bench, submit
from lorry.tests.engine_builders import make_submit, start_engine
from lorry.tests.fakes import make_card


@pytest.fixture(params=[False, True], ids=["plain", "overlapped"])
def bench(request):
    """One place, so that the second request waits; a turn of the loop takes 0.01 s."""
    return make_bench(max_running=1, overlaps=request.param, policy=SLORA)


def test_who_would_be_too_late_is_told_so_at_once(bench):
    """It would be computed for nothing, or wait without a word."""
    bench.tell(submit(1, max_new_tokens=60), submit(2, ttft_s=0.12), submit(3, ttft_s=60.0))
    bench.step(11)
    assert 2 not in bench.ended, "it has 11 of 12 parts of its bound"
    bench.step(2)
    error = bench.ended[2]
    assert isinstance(error, GivenUp) and bench.tokens[2] == []
    assert str(error) == "could not have begun within its ttft of 0.12 s: 0.11 s waited"
    assert (error.field, error.retry_after_s) == ("slo.ttft_s", pytest.approx(0.11))
    bench.run_dry()
    assert [len(bench.tokens[n]) for n in (1, 3)] == [60, 4], "the others are not touched"
    stats = bench.engine.stats(pages=False)
    assert (stats.requests_aborted_total, stats.requests_failed_total) == (1, 1)
    assert stats.requests_finished_total == 2
    assert bench.num_available == bench.pool.num_pages


def test_the_adapter_of_one_given_up_is_free_to_go(bench):
    """A user that never leaves keeps its pages for ever."""
    card = make_card()
    bench.tell(submit(1, max_new_tokens=60), submit(2, card, ttft_s=0.12))
    bench.run_dry()
    assert isinstance(bench.ended[2], GivenUp) and isinstance(bench.ended[1], Finish)
    assert [resident.num_users for resident in bench.engine.stats(pages=False).residents] == [0]


def test_an_engine_that_waits_for_a_load_wakes_to_give_up():
    """The word would come half a second late, when the net below a lost load is reached."""
    bench = make_bench(instant=False, policy=SLORA)
    bench.tell(submit(1, make_card(), ttft_s=0.12))
    begin_s = bench.clock.now_s()
    while not bench.ended:
        ended_s = bench.clock.now_s()
        bench.clock.advance(bench.step())
    assert isinstance(bench.ended[1], GivenUp)
    assert ended_s - begin_s == pytest.approx(0.12 * 11 / 12, abs=0.03)


def test_the_policy_of_the_configuration_is_the_engines():
    """`--policy slora` would be a word on the command line."""
    engine = start_engine(base_dir(), num_pages=16, page_bytes=32768, policy="slora")
    with pytest.raises(GivenUp) as given_up:
        engine.ask([make_submit(1, PROMPT, ttft_s=1e-9)])
    assert given_up.value.retry_after_s >= 0.1, "it would be back without a pause"


def test_a_request_given_up_may_come_back():
    """A client that takes it for its own fault would not; a retry at once would not help."""
    answer = answer_for(GivenUp("could not", field="slo.ttft_s", retry_after_s=2.5))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer == answer_for(Overloaded("could not", field="slo.ttft_s", retry_after_s=2.5))
