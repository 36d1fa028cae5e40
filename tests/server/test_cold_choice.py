"""How a server may start requests cold: the flags, what the machine gives, and who is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lorry.adapters.image import Site
from lorry.server.cli import main
from lorry.server.cold_choice import choose_cold
from lorry.server.cold_prices import (
    FORGET_S,
    MAX_SLACK_S,
    NUM_KEPT,
    RENEW_EVERY,
    CallsShare,
    HelpNow,
    NewestPrices,
)
from lorry.server.config import ColdConfig, CostConfig, MemoryConfig, ModelConfig, ServerConfig
from lorry.server.errors import ConfigError
from lorry.server.execution.cold_start.crew import HelperStats
from lorry.server.scheduling.cost_model import NO_MODEL, CostModel
from lorry.server.scheduling.starts import HelpCosts, Way
from lorry.tests.fakes import FakeClock, make_card

CORES = range(4)
COLD_WAYS = frozenset({Way.WAIT, Way.STREAM, Way.ASSIST})


def make_config(mode: str = "auto", helpers: int = -1, **others: object) -> ServerConfig:
    link = MemoryConfig(link_bytes_per_s=1e9)  # without one a load is a short copy
    config = ServerConfig(ModelConfig("model"), link, cold=ColdConfig(mode, helpers))
    return replace(config, **others)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("mode", "helpers", "device", "threads", "ways", "helped_on"),
    [
        ("wait", -1, "cpu", 1, {Way.WAIT}, ()),
        ("stream", 3, "cpu", 1, {Way.STREAM}, ()),
        ("assist", -1, "cpu", 3, {Way.ASSIST}, (3,)),
        ("assist", 1, "cpu", 1, {Way.ASSIST}, (3,)),
        ("auto", -1, "cpu", 1, COLD_WAYS, (1, 2, 3)),
        ("auto", -1, "cpu", 4, {Way.WAIT, Way.STREAM}, ()),
        ("auto", 0, "cpu", 1, {Way.WAIT, Way.STREAM}, ()),
        ("auto", -1, "cuda:0", 4, {Way.WAIT, Way.STREAM}, ()),  # unproven there: by word alone
        ("auto", 2, "cuda:0", 4, COLD_WAYS, (2, 3)),
        ("assist", -1, "cuda:0", 4, {Way.ASSIST}, (2, 3)),
    ],
)
def test_ways_and_helpers_follow_flags_and_cores(  # noqa: PLR0917 - a table
    mode: str,
    helpers: int,
    device: str,
    threads: int,
    ways: set[Way],
    helped_on: tuple[int, ...],
) -> None:
    """A helper on the device's core: both would take twice as long."""
    choice = choose_cold(
        make_config(mode, helpers), device=device, available=CORES, num_threads=threads
    )
    assert choice.ways == ways
    assert choice.cores.helpers == helped_on
    assert sorted((*choice.cores.helpers, *choice.cores.others)) == list(CORES)
    assert choice.why.startswith(f"--cold-start {mode}")
    assert choice.is_cold == (mode != "wait")


def test_auto_says_why_nobody_helps() -> None:
    """An operator who wonders why no request is ever assisted."""
    cases = {
        "--helpers is 0": make_config(helpers=0),
        "--host-bytes is 0": make_config(memory=MemoryConfig(host_bytes=0)),
        "--calibrate is 0": make_config(cost=CostConfig(calibrate_s=0.0)),
        "a load into a pool in host memory": make_config(memory=MemoryConfig()),
    }
    for reason, config in cases.items():
        choice = choose_cold(config, device="cpu", available=CORES, num_threads=1)
        assert reason in choice.why and Way.ASSIST not in choice.ways


def test_helpers_that_were_asked_for_need_no_calibration_of_steps() -> None:
    """--helpers would be ignored without a word."""
    config = make_config(helpers=1, cost=CostConfig(calibrate_s=0.0))
    choice = choose_cold(config, device="cpu", available=CORES, num_threads=1)
    assert choice.cores.helpers == (3,)


def test_what_cannot_be_is_refused_by_its_flags() -> None:
    """A server that assists nobody although it was told to, or fights itself for a core."""
    with pytest.raises(ConfigError, match=r"--cold-start is 'assist' and --helpers is -1.*cores"):
        choose_cold(make_config("assist"), device="cpu", available=CORES, num_threads=4)
    with pytest.raises(ConfigError, match=r"--helpers is 4.*at most 3"):
        choose_cold(make_config(helpers=4), device="cpu", available=CORES, num_threads=1)


@pytest.mark.parametrize(
    ("config", "field", "text"),
    [
        (make_config("now"), "--cold-start", "'now'; it must be one of wait, stream, assist, auto"),
        (make_config(helpers=-2), "--helpers", "-2; it must be -1 to 64"),
        (make_config(helpers=65), "--helpers", "65; it must be -1 to 64"),
        (make_config("assist", 0), "--helpers", "--cold-start is 'assist' and --helpers is 0"),
        (
            make_config("assist", memory=MemoryConfig(host_bytes=0)),
            "--host-bytes",
            "--cold-start is 'assist' and --host-bytes is 0",
        ),
    ],
)
def test_flags_are_checked_at_the_edge(config: ServerConfig, field: str, text: str) -> None:
    """Found out only when the first cold request comes, by a server that has loaded its model."""
    with pytest.raises(ConfigError, match=text) as refused:
        config.checked()
    assert refused.value.field == field


def test_the_command_line_hands_both_flags_on() -> None:
    """A flag that is read and forgotten."""
    seen: list[ServerConfig] = []
    for flags in ([], ["--cold-start", "assist", "--helpers", "2"]):
        main(["serve", "--model", "x", *flags], run_server=lambda config: seen.append(config) or 0)
    assert [config.cold for config in seen] == [ColdConfig("wait", -1), ColdConfig("assist", 2)]


def test_where_nothing_is_timed_auto_waits() -> None:
    """Helpers that no prediction would ever ask for."""
    choice = choose_cold(make_config(), device="cpu", available=CORES, num_threads=1, learns=False)
    assert choice.ways == {Way.WAIT} and not choice.is_cold and not choice.cores.helpers
    forced = choose_cold(
        make_config("assist"), device="cpu", available=CORES, num_threads=1, learns=False
    )
    assert forced.ways == {Way.ASSIST}


def test_nobody_is_helped_while_no_helper_is_up() -> None:
    """They were killed: a step that is to be assisted waits for layers instead, and everyone in
    it."""

    class Helpers:
        num_up = 1

        def stats(self) -> HelperStats:
            return HelperStats(2, self.num_up, num_restarts=0, num_lost=0)

    helpers, card = Helpers(), make_card()
    can_help = HelpNow(helpers, {"lm_head"})
    assert can_help(card)
    assert not can_help(replace(card, target_modules=("q_proj", "lm_head")))
    helpers.num_up = 0
    assert not can_help(card)
    assert not HelpNow(None, set())(card)


def test_prices_follow_what_is_learnt() -> None:
    """A choice by what was known when the server started: of loads that is nothing."""
    models = [NO_MODEL]
    ask = NewestPrices(
        COLD_WAYS, lambda: models[-1], help_costs=HelpCosts(0.5, 0.25, 7), num_layers=3
    )
    first = ask()
    assert (first.ways, first.help.num_calls, first.num_layers) == (COLD_WAYS, 7, 3)
    assert first.steps is NO_MODEL
    models.append(CostModel(NO_MODEL.step_coefs_s, load_s=2.0))
    later = [ask() for _ in range(RENEW_EVERY)][-1]
    assert math.isclose(later.steps.load_s, 2.0)


def test_what_a_hand_over_takes_is_learnt_from_steps_that_had_some() -> None:
    """A busy helper would be called for as long as it was quick when the server started; or, once
    it was slow, never again."""
    clock, timed = FakeClock(), HelpCosts(0.5, 0.25, 7)
    prices = NewestPrices(COLD_WAYS, lambda: NO_MODEL, help_costs=timed, num_layers=3, clock=clock)
    prices.helped(14, 0.7)
    prices.helped(7, 0.0)
    # 7 of 0.5 s by the calibration, 14 that took 0.7 s together, 7 that took nothing.
    assert prices().help == HelpCosts(pytest.approx((3.5 + 0.7) / 28), 0.25, 7)
    for _ in range(NUM_KEPT):
        prices.helped(1, 1000.0)
    assert prices().help.call_s == pytest.approx(2.0), "a clock gone mad would end all help"
    clock.advance(FORGET_S + 1)
    assert prices().help == timed
    prices.helped(7, 3.5)
    assert prices().help.call_s == pytest.approx(0.5), "what was forgotten counts again"


def test_others_are_held_up_for_a_share_of_the_time() -> None:
    """Start by start, each a little, those who decode would be as late as with waits."""
    clock = FakeClock()
    prices = NewestPrices(
        COLD_WAYS, lambda: NO_MODEL, help_costs=HelpCosts(1, 1, 1), num_layers=3, clock=clock
    )
    assert prices().slack_s == pytest.approx(MAX_SLACK_S)
    prices.helped(1, 0.04)
    assert prices().slack_s == pytest.approx(MAX_SLACK_S - 0.04)
    clock.advance(0.4)
    assert prices().slack_s == pytest.approx(MAX_SLACK_S - 0.02)
    prices.helped(1, 9.0)
    assert prices().slack_s == pytest.approx(-MAX_SLACK_S), "one bad step would end help for long"
    clock.advance(60.0)
    assert prices().slack_s == pytest.approx(MAX_SLACK_S), "no more than that is saved up"


def test_an_adapter_of_few_modules_needs_few_hand_overs() -> None:
    """Helpers would seem slower than they are for every adapter but the widest."""
    names = ("q_proj", "k_proj", "o_proj", "up_proj")
    sites = [Site(f"layers.{layer}.{name}", layer, 8, 8) for layer in range(2) for name in names]
    groups = [(0, 1), (2,), (3,), (4, 5), (6,), (7,)]
    share, card = CallsShare(sites, groups), make_card()
    assert share(replace(card, target_modules=("k_proj", "o_proj"))) == pytest.approx(2 / 3)
    assert share(replace(card, target_modules=names)) == pytest.approx(1.0)
    assert share(replace(card, target_modules=("elsewhere",))) == pytest.approx(1.0)
