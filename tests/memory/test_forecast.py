"""The forecast of loads: the queue of the wire and of the readers, corrected by what is heard."""

import random

import pytest

from lorry.server.memory.forecast import LoadForecast
from lorry.tests.cold_life_builders import make_model


def make_forecast(*, load_s: float = 0.0, read_s_per_byte: float = 0.0) -> LoadForecast:
    model = make_model(load_s_per_byte=0.01, load_s=load_s, read_s_per_byte=read_s_per_byte)
    return LoadForecast(lambda: model)


def landed_s(forecast: LoadForecast, load_id: int, now_s: float) -> float:
    return forecast.landing(load_id, now_s).landed_s


def test_loads_cross_one_after_the_other():
    """The second would be foretold as if the wire were its own."""
    forecast = make_forecast(load_s=0.5)
    forecast.order(1, 100, 10.0, read=False)
    forecast.order(2, 200, 10.0, read=False)
    assert landed_s(forecast, 1, 10.0) == pytest.approx(11.5)
    second = forecast.landing(2, 10.0)
    assert (second.begun_s, second.landed_s) == pytest.approx((11.5, 14.0))
    assert second.held_s == 10.0
    would = forecast.would(100, 10.0, read=False)
    assert (would.begun_s, would.landed_s) == pytest.approx((14.0, 15.5))


def test_a_load_that_is_over_corrects_those_behind_it():
    """An error would be carried on through the whole queue."""
    forecast = make_forecast()
    forecast.order(1, 100, 10.0, read=False)
    forecast.order(2, 100, 10.0, read=False)
    forecast.over(1, 10.7, seconds=0.4)  # heard of late: it was over at 10.4
    assert landed_s(forecast, 2, 10.7) == pytest.approx(11.4)
    forecast.over(2, 10.8)
    assert len(forecast) == 0
    assert forecast.would(100, 20.0, read=False).landed_s == pytest.approx(21.0)
    forecast.over(7, 21.0)  # of nobody


def test_a_load_that_is_late_may_take_as_long_again():
    """Everyone would wait for a load that is about to end, for ever."""
    forecast = make_forecast()
    forecast.order(1, 100, 10.0, read=False)
    forecast.order(2, 100, 10.0, read=False)
    assert landed_s(forecast, 1, 11.0) == pytest.approx(11.0)
    assert landed_s(forecast, 1, 14.0) == pytest.approx(17.0)
    assert landed_s(forecast, 2, 14.0) == pytest.approx(18.0)


def test_reads_go_side_by_side_and_whoever_is_read_first_crosses_first():
    """What lies on disk would be foretold as if it were in host memory, or stop the others."""
    forecast = make_forecast(read_s_per_byte=0.05)
    forecast.order(1, 100, 10.0, read=True)
    forecast.order(2, 100, 10.0, read=True)
    forecast.order(3, 100, 10.0, read=True)
    forecast.order(4, 100, 10.0, read=False)
    first = forecast.landing(1, 10.0)
    assert (first.begun_s, first.held_s) == pytest.approx((10.0, 15.0))
    assert first.landed_s == pytest.approx(15.0), "as fast as the disk"
    third = forecast.landing(3, 10.0)
    assert third.begun_s >= 15.0 and third.held_s == pytest.approx(20.0)
    would = forecast.would(100, 10.0, read=True)
    assert would.held_s == pytest.approx(20.0), "the second reader is free at 15"


def test_an_opening_tells_when_reading_began():
    """A file read ahead, or one whose reader was busy, would be foretold by its order."""
    forecast = make_forecast(read_s_per_byte=0.05)
    forecast.order(1, 100, 10.0, read=True)
    assert forecast.landing(1, 12.0).held_s == pytest.approx(17.0), "not open: not begun"
    forecast.opened(1, 12.5)
    forecast.opened(1, 13.0)
    assert forecast.landing(1, 13.0).held_s == pytest.approx(17.5)
    forecast.opened(9, 13.0)


def test_foretelling_follows_the_model():
    """Prices of the first load would be used for ever."""
    models = [make_model(load_s_per_byte=0.01), make_model(load_s_per_byte=0.02)]
    forecast = LoadForecast(lambda: models[0])
    forecast.order(1, 100, 0.0, read=False)
    assert landed_s(forecast, 1, 0.5) == pytest.approx(1.0)
    models.pop(0)
    assert landed_s(forecast, 1, 0.6) == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_instant_lies_in_the_past_and_the_order_holds(seed):
    """A landing behind its beginning, or before now, would have rows begin on nothing."""
    rng = random.Random(seed)
    forecast, now_s, under_way = make_forecast(read_s_per_byte=0.02), 0.0, list[int]()
    for load_id in range(200):
        forecast.order(load_id, rng.randrange(1, 300), now_s, read=rng.random() < 0.5)
        under_way.append(load_id)
        now_s += rng.random()
        for number in rng.sample(under_way, len(under_way) // 2):
            if rng.random() < 0.5:
                forecast.opened(number, now_s)
            elif len(under_way) > 1:
                under_way.remove(number)
                forecast.over(number, now_s, seconds=rng.choice([0.0, 0.1]))
        landings = [forecast.landing(number, now_s) for number in under_way]
        for landing in landings:
            assert landing.landed_s >= max(now_s, landing.begun_s, landing.held_s)
        would = forecast.would(10, now_s, read=False)
        assert would.begun_s >= max(landing.landed_s for landing in landings)
    assert len(forecast) == len(under_way)
