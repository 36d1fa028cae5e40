"""Orders compared: ratios the right way up, of the same seeds, the worst kind by name."""

from __future__ import annotations

import math

import pytest

from lorry.bench.memory.document import last_line, make_document, misses, quoted_ratios
from lorry.bench.memory.live import LiveStudy
from lorry.bench.memory.rows import compare_all, hit_rates, ttft_of, worst_mean, worst_p99
from lorry.bench.memory.waste import measure_waste
from lorry.bench.memory.workloads import LIVE
from lorry.tests.memory_study_builders import make_cell, make_cells, make_report


def test_a_ratio_is_of_the_economy_to_the_baseline() -> None:
    """The other way up, a loss would be quoted as a gain."""
    found = compare_all(make_cells({"economy": 0.8, "lru": 1.0, "split": 1.6}))
    assert [(one.baseline, one.mean_ratio, one.p99_ratio) for one in found] == [
        ("lru", 0.8, 0.8),
        ("split", 0.5, 0.5),
    ]
    assert [one.by_seed for one in found] == [(0.8, 0.8), (0.5, 0.5)]


def test_requests_of_all_seeds_count_alike() -> None:
    """A mean of ratios would let an easy seed hide a hard one."""
    cells = [
        make_cell(seed=1, eviction="economy", ttft_s=(1.0, 1.0)),
        make_cell(seed=2, eviction="economy", ttft_s=(9.0, 9.0)),
        make_cell(seed=1, eviction="lru", ttft_s=(2.0, 2.0)),
        make_cell(seed=2, eviction="lru", ttft_s=(8.0, 8.0)),
        make_cell(seed=3, eviction="lru", ttft_s=(100.0, 100.0)),
    ]
    (one,) = compare_all(cells)
    assert one.mean_ratio == 1.0, "of seeds that both have"
    assert one.by_seed == (0.5, 9 / 8)
    assert ttft_of(cells[:2]).p99_s == 9.0


def test_who_got_no_token_is_not_forgotten() -> None:
    """Of the quick answers alone, an order that starves somebody would win."""
    cells = make_cells({"economy": 0.5, "lru": 1.0, "split": 1.0})
    cells[0] = make_cell(ttft_s=(0.5, math.inf))
    found = compare_all(cells)
    assert all(math.isnan(one.mean_ratio) and math.isnan(one.p99_ratio) for one in found)
    assert math.isnan(worst_mean(found, "lru").ratio)


def test_the_worst_kind_is_quoted_by_name() -> None:
    """A mean over kinds hides the one where the economy loses."""
    cells = make_cells({"economy": 0.5, "lru": 1.0, "split": 1.0})
    cells += make_cells({"economy": 0.9, "lru": 1.0, "split": 2.0}, kind="turns")
    found = compare_all(cells)
    assert worst_mean(found, "lru").kind == "turns"
    assert worst_mean(found, "split").kind == "zipf"
    assert worst_p99(found, "lru").ratio == 0.9


def test_hit_rates_are_of_all_that_asked() -> None:
    """A cell of few requests would weigh as much as one of many."""
    found = hit_rates([make_cell(), make_cell(seed=2)])
    assert (found.prefix, found.adapter) == (0.25, 0.5)
    assert math.isnan(hit_rates([]).prefix)


def test_the_last_line_has_every_figure_and_the_worse_half() -> None:
    """A reader looks for these names; the better half alone would be a boast."""
    line = last_line(make_report())
    assert line["economy_vs_lru_mean_ttft"] == 0.8
    assert line["simulated_economy_vs_lru_mean_ttft"] == 0.5
    assert line["live_economy_vs_split_mean_ttft"] == 0.5
    assert line["economy_vs_split_mean_ttft"] == 0.5
    assert line["economy_vs_lru_p99_ttft"] == 0.8
    assert line["live_economy_vs_lru_mean_ttft_worst"] == "zipf"
    assert line["waste_fraction"] is line["kv_room_vs_closed_form"] is None
    only = last_line(make_report(live=None, not_run={"live": "left out by --only"}))
    assert only["live_economy_vs_lru_mean_ttft"] is None
    assert only["economy_vs_lru_mean_ttft"] == 0.5
    assert only["not_run"] == {"live": "left out by --only"}


def test_a_target_that_is_missed_is_named() -> None:
    """An exit code of 0 for a claim that does not hold."""
    assert misses(make_report()) == []
    slow = make_cells({"economy": 0.95, "lru": 1.0, "split": 2.0})
    found = misses(make_report(simulated=slow))
    assert len(found) == 1 and "simulated, zipf: economy_vs_lru_mean_ttft is 0.950" in found[0]
    starved = make_cells({"economy": math.inf, "lru": 1.0, "split": 2.0})
    live = LiveStudy(tuple(starved), (), {}, load=0.8)
    assert len(misses(make_report(live=live))) == 3, "what is not measured is not met"
    assert all(math.isnan(worst.ratio) for worst in quoted_ratios(starved).values())


def test_the_document_shows_the_baseline_against_itself() -> None:
    """Without it nobody knows what a ratio of 0.95 is worth on this machine."""
    (again,) = make_document(make_report())["again"]
    assert again["mean_ttft"] == pytest.approx(1.1)
    assert (again["kind"], again["seed"], again["eviction"]) == ("zipf", 1, "lru")


def test_the_document_says_how_large_the_live_half_was() -> None:
    """A ratio on another scale is another figure."""
    told = make_document(make_report())["live_scale"]
    assert told["ranks"]["ranks"] == list(LIVE.ranks.ranks)
    assert told["system_tokens"] == LIVE.system_tokens


def test_waste_and_room_keep_their_targets() -> None:
    """A layout rule that pads more would take tokens from everybody. The two with odd widths."""
    found = measure_waste(("qwen2.5-0.5b", "gemma3-1b"), [("all-linear",)])
    assert [one.tokens_per_page for one in found] == [16, 16]
    assert all(0 < one.waste < 0.01 for one in found)
    assert all(0.995 < one.room_vs_closed_form < 1 for one in found)
    report = make_report(waste=found)
    assert misses(report) == []
    assert last_line(report)["waste_fraction"] == max(one.waste for one in found)
    assert last_line(report)["kv_room_vs_closed_form"] == min(
        one.room_vs_closed_form for one in found
    )
    layouts = make_document(report)["layouts"]
    assert [len(one["by_rank"]) for one in layouts] == [6, 6]
