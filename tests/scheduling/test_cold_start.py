"""The choice of a way: what is foretold, and that waiting is never the better one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.cold_start import (
    MAX_STALL,
    MIN_GAIN_S,
    Beside,
    Prompt,
    choose_start,
)
from lorry.server.scheduling.cost_model import NO_MODEL
from lorry.server.scheduling.starts import HelpCosts, OnItsWay, StartPrices, Way
from lorry.tests.cold_life_builders import AUTO, make_model

NOW_S = 100.0
PROMPT = Prompt(start=0, num_known=100, chunk_tokens=1000, adapter_bytes=1000)
# 100 tokens take 1 s with their adapter's part, and 0.9 s without.
MODEL = make_model(step_s=0.0, token_s=0.009, lora_s=1e-6)
FAST_HELP = HelpCosts(call_s=1e-4, token_byte_s=1e-7, num_calls=10)


def make_prices(ways=AUTO, *, helpers=FAST_HELP, steps=MODEL, num_layers=10) -> StartPrices:
    return StartPrices(frozenset(ways), steps, helpers, num_layers)


def coming(
    lasts_s: float, *, queue_s: float = 0.0, is_open: bool = True, can_help: bool = True
) -> OnItsWay:
    """In host memory, unless it cannot be opened."""
    landed_s = NOW_S + queue_s + lasts_s
    return OnItsWay(landed_s, NOW_S + queue_s, NOW_S, is_open=is_open, can_help=can_help)


def choose(on_its_way: OnItsWay, prices: StartPrices | None = None, prompt=PROMPT, **kwargs):
    return choose_start(prompt, on_its_way, prices or make_prices(), NOW_S, **kwargs)


def beside(turn_s: float, **kwargs: float) -> Beside:
    """Others who decode, step after step."""
    return Beside(turn_s=turn_s, later_s=turn_s, **kwargs)


def test_waiting_takes_the_load_and_the_prompt():
    """Everything else is measured by it."""
    start = choose(coming(2.0, queue_s=1.0), make_prices({Way.WAIT}))
    assert start.way is Way.WAIT
    assert start.predicted_s == pytest.approx(3.0 + 1.0)
    assert start.start_s == pytest.approx(NOW_S + 3.0)


def test_a_stream_begins_as_late_as_it_may_without_a_stop():
    """It would hold up everyone in its step, or hide nothing."""
    start = choose(coming(3.0), make_prices({Way.WAIT, Way.STREAM}))
    assert start.way is Way.STREAM
    # The last of ten layers is reached 0.9 s after the beginning, and lands after 3.
    assert start.start_s == pytest.approx(NOW_S + 2.1 - MAX_STALL)
    assert start.predicted_s == pytest.approx(2.1 + 1.0)
    short = choose(coming(0.5), make_prices({Way.WAIT, Way.STREAM}))
    # The first layer has landed after 0.05 s, and the others follow faster than they are reached.
    assert short.way is Way.STREAM
    assert short.predicted_s == pytest.approx(1.05)
    assert short.start_s == pytest.approx(NOW_S + 0.05 - MAX_STALL)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lasts_s=st.floats(0.0, 5.0),
    queue_s=st.floats(-2.0, 3.0),
    num_layers=st.integers(1, 12),
    early_s=st.floats(0.0, 1.0),
)
def test_a_stream_is_never_stopped_for_longer_than_is_allowed(
    lasts_s, queue_s, num_layers, early_s
):
    """Layers would be waited for in the middle of a step, and bystanders with them."""
    load = coming(lasts_s, queue_s=queue_s)
    start = choose(load, make_prices({Way.STREAM}, num_layers=num_layers))
    at_s = max(start.start_s, NOW_S)
    stops_s = 0.0
    for layer in range(1, num_layers + 1):  # layer by layer, as a step goes
        landed_s = load.begun_s + lasts_s * layer / num_layers
        stops_s += max(landed_s - at_s, 0.0)
        at_s = max(at_s, landed_s) + 1.0 / num_layers
    assert stops_s <= MAX_STALL + 1e-9
    assert at_s == pytest.approx(NOW_S + start.predicted_s)


def test_only_the_first_chunk_hides_a_load():
    """A long prompt in short chunks would be begun long before its last layers are there: the
    first chunk goes through all of them."""
    chunks = PROMPT._replace(chunk_tokens=10)
    start = choose(coming(3.0), make_prices({Way.STREAM}), chunks)
    assert start.start_s == pytest.approx(NOW_S + 3.0 - 0.09 - 0.1 * MAX_STALL)
    assert start.predicted_s == pytest.approx(2.91 + 1.0)


def test_fast_helpers_make_a_cold_start_as_fast_as_a_warm_one():
    """The point of it all."""
    start = choose(coming(3.0))
    assert start.way is Way.ASSIST
    # 0.9 s of the base, and ten hand-overs of a tenth of a millisecond.
    assert start.predicted_s == pytest.approx(0.901)
    assert start.start_s == NOW_S
    assert start.others_s[Way.WAIT] == pytest.approx(4.0)
    assert start.others_s[Way.STREAM] == pytest.approx(3.1)


def test_slow_helpers_are_passed_over():
    """A step of theirs would take longer than the load."""
    slow = HelpCosts(call_s=1e-4, token_byte_s=1e-4, num_calls=10)
    start = choose(coming(3.0), make_prices(helpers=slow))
    assert start.way is Way.STREAM
    assert start.others_s[Way.ASSIST] > 3.5


def test_helpers_are_not_asked_for_layers_that_have_landed():
    """A load that is half over would be foretold as if it had just begun."""
    slow = HelpCosts(call_s=0.0, token_byte_s=2e-5, num_calls=10)  # 2 s for the prompt
    half = OnItsWay(NOW_S + 1.5, NOW_S - 1.5, NOW_S, is_open=True, can_help=True)
    start = choose(half, make_prices({Way.ASSIST}, helpers=slow))
    # Five layers are there: 0.5 s; then layers land every 0.3 s and helpers need 0.2 s for one,
    # so that a landed one is met now and then.
    assert 0.5 + 0.5 < start.predicted_s < 0.5 + 5 * 0.2
    fresh = choose(coming(3.0), make_prices({Way.ASSIST}, helpers=slow))
    assert fresh.predicted_s == pytest.approx(2.0)


def test_helpers_may_not_hold_up_those_who_decode():
    """One request's first token would be paid for by everyone else's next one."""
    slow = HelpCosts(call_s=0.0, token_byte_s=1.5e-5, num_calls=10)  # half as long again
    assert choose(coming(3.0), make_prices(helpers=slow)).way is Way.ASSIST
    for slack_s, way in ((0.4, Way.STREAM), (0.6, Way.ASSIST)):
        prices = replace(make_prices(helpers=slow), slack_s=slack_s)
        assert choose(coming(3.0), prices, beside=beside(0.01)).way is way
    assert choose(coming(3.0), replace(prices, slack_s=-1.0)).way is Way.ASSIST, "it is alone"
    forced = make_prices({Way.ASSIST}, helpers=slow)
    assert choose(coming(3.0), forced, beside=beside(0.01)).way is Way.ASSIST
    assert choose(coming(3.0), beside=beside(0.01)).way is Way.ASSIST, "fast ones may"
    long = replace(make_prices(helpers=slow), slack_s=0.0)
    assert choose(coming(9.0), long, beside=beside(4.0)).way is Way.ASSIST, (
        "beside a long step it is nothing"
    )


def test_beside_others_it_begins_between_their_steps():
    """A stream that is due in the middle of a step would be foretold as if it began there."""
    alone = choose(coming(3.0), make_prices({Way.WAIT, Way.STREAM}))
    assert alone.predicted_s == pytest.approx(3.1)
    start = choose(coming(3.0), make_prices({Way.WAIT, Way.STREAM}), beside=beside(0.4))
    # With theirs a step takes 1.4 s, of which 1.26 hide the load: it may begin 1.67 s from now,
    # and the fifth of their steps begins after two.
    assert start.start_s == pytest.approx(NOW_S + 3.0 - 1.26 - 1.4 * MAX_STALL)
    assert start.predicted_s == pytest.approx(2.0 + 1.4)
    assert start.others_s[Way.WAIT] == pytest.approx(3.2 + 1.4)
    assert choose(coming(3.0), beside=beside(0.4)).predicted_s == pytest.approx(1.301)


def test_whoever_stands_behind_others_waits_for_nothing_but_them():
    """A load that is over long before its turn would be helped with; and whoever is last in a burst
    be told that the first token is near."""
    start = choose(coming(3.0, can_help=False), beside=beside(1.0, ahead_s=7.0))
    assert start.way is Way.WAIT and "behind the prompts" in start.reason
    assert start.predicted_s == pytest.approx(1.0 + 7.0 + 2.0)
    short = choose(coming(3.0), make_prices({Way.WAIT}), beside=beside(1.0, ahead_s=0.5))
    assert short.predicted_s == pytest.approx(3.0 + 2.0), "theirs are over first"


def test_helpers_of_one_step_are_shared():
    """Each of a burst would be foretold as if the helpers were its own."""
    slow = HelpCosts(call_s=0.0, token_byte_s=9e-6, num_calls=10)  # as long as the base's part
    alone = choose(coming(9.0), make_prices(helpers=slow))
    assert alone.way is Way.ASSIST and alone.predicted_s == pytest.approx(0.9)
    others = Beside(turn_s=1.0, helpers_s=5.0, called_s=0.1)
    second = choose(coming(9.0), make_prices({Way.ASSIST}, helpers=slow), beside=others)
    assert second.predicted_s == pytest.approx(6.0)
    free = replace(make_prices(helpers=slow), slack_s=1.0)
    assert choose(coming(9.0), free, beside=others).way is not Way.ASSIST


def test_what_does_not_fit_into_this_step_is_computed_in_the_next_ones():
    """The first of two chunks would be foretold as the whole prompt."""
    some = choose(coming(9.0), make_prices({Way.ASSIST}), beside=Beside(num_tokens=40))
    assert some.predicted_s == pytest.approx(0.9 + 2 * 1e-3)


def test_of_ways_that_are_alike_the_simpler_one():
    """Helpers would be asked for what the link does as well."""
    start = choose(coming(0.01), make_prices({Way.STREAM, Way.ASSIST}, steps=make_model()))
    assert start.way is Way.STREAM


def test_a_load_from_disk_is_helped_with_as_it_is_read():
    """Helpers would be asked for layers that nobody has read."""
    disk = OnItsWay(NOW_S + 5.0, NOW_S + 4.0, NOW_S + 4.0, is_open=True, can_help=True)
    start = choose(disk, make_prices({Way.ASSIST}))
    assert start.start_s == pytest.approx(NOW_S + 4.0 - 0.901 * 0.9)
    assert start.predicted_s == pytest.approx(4.0 + 0.1 * 0.901)


@pytest.mark.parametrize("steps", [NO_MODEL, make_model(step_s=float("nan"))])
def test_without_a_model_everyone_waits_unless_it_is_forbidden(steps):
    """Nothing is known, so nothing is gained; but who forbids waiting means it."""
    start = choose(coming(3.0), make_prices(steps=steps))
    assert start.way is Way.WAIT
    assert "not known" in start.reason
    for way in (Way.STREAM, Way.ASSIST):
        forced = choose(coming(0.0), make_prices({way}, steps=NO_MODEL))
        assert forced.way is way
        assert forced.start_s <= NOW_S


@pytest.mark.parametrize("way", [Way.STREAM, Way.ASSIST])
def test_a_forced_way_is_gone_also_where_it_gains_nothing(way):
    """A bench of one way would measure another one."""
    assert choose(coming(1e-6), make_prices({way})).way is way
    assert choose(coming(1e-6)).way is Way.WAIT
    alone = choose(coming(3.0, can_help=False), make_prices({Way.ASSIST}))
    assert alone.way is Way.WAIT, "where nobody can help there is nothing else"


def test_a_load_that_is_nearly_over_is_waited_for():
    """A millisecond would be won at the price of a step that may be lost."""
    start = choose(coming(0.9 * MIN_GAIN_S), prompt=PROMPT._replace(num_known=1))
    assert start.way is Way.WAIT
    assert start.reason == "the load ends before a step could gain by it"
    start = choose(coming(0.04))
    assert start.way is Way.WAIT
    assert start.reason == "the load is short beside the prompt"


SECONDS = st.floats(0.0, 10.0)
COSTS = st.builds(HelpCosts, st.floats(0.0, 0.01), st.floats(0.0, 1e-3), st.integers(0, 50))
PROMPTS = st.builds(
    Prompt, st.just(0), st.integers(1, 500), st.integers(1, 200), st.integers(1, 10**6)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    PROMPTS, st.tuples(SECONDS, SECONDS, SECONDS), COSTS, st.integers(1, 40), st.floats(0.0, 1.0)
)
def test_nobody_is_foretold_worse_than_waiting_and_longer_loads_never_sooner(
    prompt, spans_s, helpers, num_layers, turn_s
):
    """A way would be chosen that loses; or a longer load be liked better than a shorter one."""
    lasts_s, queue_s, more_s = spans_s
    prices = make_prices(helpers=helpers, num_layers=num_layers)
    start = choose(coming(lasts_s, queue_s=queue_s), prices, prompt, beside=beside(turn_s))
    wait_s = start.others_s[Way.WAIT]
    assert start.predicted_s <= wait_s
    assert start.way is Way.WAIT or start.predicted_s <= wait_s - MIN_GAIN_S
    longer = coming(lasts_s + more_s, queue_s=queue_s)
    later = choose(longer, prices, prompt, beside=beside(turn_s))
    for way in (Way.WAIT, Way.STREAM):
        assert later.others_s[way] >= start.others_s[way] - 1e-9
