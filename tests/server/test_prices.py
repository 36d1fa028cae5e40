"""What it costs to bring back a page or an adapter."""

from lorry.server.prices import RENEW_EVERY, Prices
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.step_work import NO_WORK
from lorry.tests.fakes import make_card


def model(token_s: float = 0.0, pair_s: float = 0.0, **load: float) -> CostModel:
    coefs = NO_WORK._replace(prompt_tokens=token_s, prompt_pairs=pair_s)  # pyright: ignore[reportArgumentType]
    return CostModel(tuple(coefs), **load)


def test_a_later_page_costs_more():
    """Attention to what is before it is part of what is saved."""
    prices = Prices(4, model=lambda: model(1.0, 0.5))
    assert prices.page_s(0) == 4 + 0.5 * (1 + 2 + 3 + 4)
    assert prices.page_s(8) == 4 + 0.5 * (9 + 10 + 11 + 12)


def test_nothing_is_free_where_nothing_was_learnt():
    """Whatever costs nothing is worth nothing: all of its kind would go first."""
    prices = Prices(4)
    assert prices.page_s(0) == prices.page_s(400) > 0
    assert prices.reload_s(make_card(weight_bytes=1 << 30)) > prices.reload_s(make_card()) > 0


def test_an_adapter_costs_its_load_and_the_disk_where_only_that_has_it():
    costs = model(load_s=0.5, load_s_per_byte=0.25, read_s_per_byte=1.0)
    prices = Prices(4, model=lambda: costs, in_host=lambda key: key.name == "near")
    assert prices.reload_s(make_card("near", weight_bytes=8)) == 2.5
    assert prices.reload_s(make_card("far", weight_bytes=8)) == 10.5


def test_prices_follow_the_model():
    """A server without a calibration would price by its guesses for ever."""
    now = [model(1.0)]
    prices = Prices(1, model=lambda: now[0])
    now[0] = model(3.0)
    told = [prices.page_s(0) for _ in range(RENEW_EVERY)]
    assert (told[0], told[-1]) == (1.0, 3.0)
