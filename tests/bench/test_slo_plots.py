"""What the pictures show, and that they are files of the same bytes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lorry.bench.slo.intervals import wilson
from lorry.bench.slo.plot_points import MAX_CURVE_POINTS, Cell, bars_of, curve_of, points_of
from lorry.bench.slo.plot_style import COLOURS, Caption, looks_of
from lorry.bench.slo.plots import plot_attainment, plot_classes, plot_goodput, plot_ttft_cdf
from lorry.bench.slo.stamps import Outcome
from lorry.tests.slo_builders import make_figures, make_run, make_stamps

CAPTION = Caption("a model", "a device", "abc")
MAX_BYTES = 60_000


def make_cells() -> list[Cell]:
    return [
        Cell(2.0, make_figures(3, 4)),
        Cell(1.0, make_figures(4, 4)),
        Cell(2.0, make_figures(1, 4)),  # the second round
        Cell(2.0, make_figures(4, 8, simulated=True)),
    ]


def test_repeats_are_one_point_no_surer_than_one_of_them() -> None:
    """Rounds repeat the same requests: counted together, three would look 1.7 times as sure."""
    found = points_of(make_cells())
    assert list(found) == ["fcfs", "fcfs (simulated)"]
    low, high = found["fcfs"]
    assert (low.rate_per_s, low.attainment) == (1.0, wilson(4, 4))
    assert (high.rate_per_s, high.attainment.value) == (2.0, 0.5)
    assert high.attainment.low == pytest.approx((wilson(3, 4).low + wilson(1, 4).low) / 2)
    assert high.attainment.high == pytest.approx((wilson(3, 4).high + wilson(1, 4).high) / 2)
    assert high.goodput_per_s.value == pytest.approx(0.5)  # half of one request a second


def test_bars_of_classes() -> None:
    bars = bars_of(make_cells(), "rank")["fcfs"]
    assert [(bar.name, bar.num_requests) for bar in bars] == [("r8", 4)]
    assert bars[0].attainment.value == pytest.approx(8 / 12)
    assert bars[0].attainment.low < wilson(8, 12).low - 0.1
    assert [bar.name for bar in bars_of(make_cells(), "popularity")["fcfs"]] == ["even"]


def test_curve_ends_below_one() -> None:
    """Who got no token did not get it quickly."""
    run = make_run(
        make_stamps(0, 1.0, (4.0,)),
        make_stamps(1, 1.0, outcome=Outcome.REFUSED, end_s=2.0),
        make_stamps(2, 2.0, (2.5,)),
    )
    curve = curve_of([run, run])
    assert curve.ttft_s == (0.5, 0.5, 3.0, 3.0)
    assert curve.share == pytest.approx((1 / 6, 2 / 6, 3 / 6, 4 / 6))


def test_long_curve_is_thinned_to_its_ends() -> None:
    run = make_run(*(make_stamps(i, 0.0, (1.0 + i,)) for i in range(3 * MAX_CURVE_POINTS)))
    curve = curve_of([run])
    assert len(curve.ttft_s) == MAX_CURVE_POINTS
    assert (curve.ttft_s[0], curve.ttft_s[-1], curve.share[-1]) == (1.0, 3000.0, 1.0)


def test_simulated_looks_like_its_live_one() -> None:
    looks = looks_of(["slora", "fcfs", "slora (simulated)"])
    assert looks["slora"].colour == looks["slora (simulated)"].colour == COLOURS[1]
    assert (looks["slora"].line, looks["slora (simulated)"].line) == ("-", "--")
    assert looks["slora (simulated)"].fill == "white"


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    """The same figures give the same bytes, so that a picture changes in git when they do."""
    cells = make_cells()
    empty = make_run(make_stamps(0, outcome=Outcome.FAILED, end_s=1.0), policy="slora")
    curves = [curve_of([make_run(make_stamps(0, 0.0, (1.0,)))]), curve_of([empty])]
    assert math.isclose(sum(curves[0].share), 1.0) and curves[1].share == ()
    plot_attainment(tmp_path / "attainment.png", cells, CAPTION)
    plot_goodput(tmp_path / "goodput.png", cells, CAPTION)
    plot_ttft_cdf(tmp_path / "ttft.png", curves, CAPTION)
    plot_classes(tmp_path / "rank.png", cells, CAPTION, by="rank", load="2 requests/s")
    for picture in tmp_path.iterdir():
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < MAX_BYTES
        assert b"matplotlib" not in content  # its version would be another file
    plot_attainment(tmp_path / "again.png", cells, CAPTION)
    again = (tmp_path / "again.png").read_bytes()
    assert again == (tmp_path / "attainment.png").read_bytes()
