"""Settings to workloads: the same for the same seed, one change at a time, and the presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorry.bench.workload.__main__ import main
from lorry.bench.workload.arrivals import Gamma
from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.file import digest_of, read_workload, write_workload
from lorry.bench.workload.fit import Scale
from lorry.bench.workload.lengths import Fixed, PoolLengths, UniformLengths
from lorry.bench.workload.make import make_workload, notes_of
from lorry.bench.workload.moments import dispersion, moments_of
from lorry.bench.workload.popularity import Distinct, PoolShares, Shifting, Zipf
from lorry.bench.workload.presets import PRESETS, find_preset
from lorry.bench.workload.ranks import RankMix
from lorry.bench.workload.records import BASE
from lorry.bench.workload.report import lines_of
from lorry.bench.workload.senders import PerAdapter, PoolClients
from lorry.bench.workload.sessions import Sessions
from lorry.bench.workload.settings import FromTrace, OfTrace, WorkloadSettings
from lorry.tests.workload_builders import make_settings, make_small_workload, share_agrees


def small(settings: WorkloadSettings) -> WorkloadSettings:
    """Slow enough that what is to happen in a preset happens."""
    return replace(settings, num_requests=60, span_s=0.0, rate_per_s=0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_drawn_the_same_each_time_and_replayed_from_its_file(
    name: str, tmp_path: Path
) -> None:
    settings = small(find_preset(name))
    paths = [tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"]
    for path in paths:
        write_workload(make_workload(settings), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    workload = read_workload(paths[0])
    assert workload == make_workload(settings)
    assert len(workload.requests) == 60
    assert json.loads(workload.recipe)["settings"]["name"] == name
    other = make_workload(replace(settings, seed=1))
    assert other.requests != workload.requests


def test_the_rate_changes_the_instants_alone() -> None:
    """Two rates of a sweep ask the same of the same adapters, in the same order."""
    settings = make_settings(popularity=Zipf(1.0), lengths=UniformLengths(), base_share=0.2)
    slow, fast = make_workload(settings), make_workload(replace(settings, rate_per_s=20.0))
    assert fast.span_s == pytest.approx(slow.span_s / 10, abs=1e-5)
    assert slow.adapters == fast.adapters
    for left, right in zip(slow.requests, fast.requests, strict=True):
        assert left == replace(right, at_s=left.at_s)


def test_other_ranks_change_the_adapters_alone() -> None:
    settings = make_settings(lengths=UniformLengths())
    left = make_workload(settings)
    right = make_workload(replace(settings, ranks=RankMix((8, 64), order="hot-low")))
    assert [item.rank for item in right.adapters] == [8] * 4 + [64] * 4
    assert [item.prompt for item in left.requests] == [item.prompt for item in right.requests]


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    settings = make_settings(arrivals=Gamma(4.0), popularity=Zipf(1.0))
    short, long = make_workload(settings), make_workload(replace(settings, num_requests=500))
    for left, right in zip(short.requests, long.requests, strict=False):
        assert (left.at_s, left.adapter, left.prompt) == (right.at_s, right.adapter, right.prompt)


def test_the_base_gets_its_share_and_the_weights_are_of_the_rest() -> None:
    workload = make_workload(make_settings(num_requests=10_000, base_share=0.3, num_adapters=3))
    share = sum(request.adapter == BASE for request in workload.requests) / 10_000
    assert share_agrees(share, 0.3, 10_000)
    assert sum(adapter.weight for adapter in workload.adapters) == pytest.approx(1.0)
    only_base = make_workload(make_settings(base_share=1.0, num_adapters=0))
    assert {request.adapter for request in only_base.requests} == {BASE}
    assert only_base.adapters == ()


def test_what_had_to_be_cut_is_in_the_recipe() -> None:
    workload = make_workload(
        make_settings(lengths=Fixed(90, 30), scale=Scale(max_model_len=100, max_answer_tokens=20))
    )
    assert {item.num_prompt_tokens for item in workload.requests} == {80}
    assert notes_of(workload) == {
        "prompts_cut": 50,
        "answers_cut": 50,
        "conversations_cut_short": 0,
        "trace_rows_left_out": 0,
    }


def test_every_prompt_is_its_own_when_requests_stand_alone() -> None:
    workload = make_workload(make_settings(num_requests=2000))
    assert len({request.prompt for request in workload.requests}) == 2000


def test_bursts_per_adapter_are_bursts_of_adapters() -> None:
    """One process of the same CV, dealt out over forty adapters, leaves each of them calm."""
    for arrivals, low, high in ((PerAdapter(8.0), 5.0, 12.0), (Gamma(8.0), 0.9, 2.0)):
        workload = make_workload(
            make_settings(num_requests=20_000, rate_per_s=20.0, num_adapters=40, arrivals=arrivals)
        )
        cvs: list[float] = []
        for adapter in workload.adapters:
            own = [item.at_s for item in workload.requests if item.adapter == adapter.name]
            gaps = np.diff(own)
            cvs.append(float(gaps.std() / gaps.mean()))
        # The CV of a few hundred skewed gaps errs to the low side: their mean over the adapters.
        assert low < np.mean(cvs) < high


def test_a_pool_makes_traffic_that_a_process_without_clients_does_not() -> None:
    """ServeGen's point: the same rate, shares and lengths, but calm."""
    base = small(find_preset("servegen-m-mid"))
    settings = replace(base, num_requests=10_000, rate_per_s=20.0)
    with_clients = moments_of(make_workload(settings))
    calm = moments_of(make_workload(replace(settings, arrivals=Gamma(1.0))))
    assert with_clients.idc[1] > 3 * calm.idc[1]


def test_thousands_of_adapters_are_drawn_one_process_each() -> None:
    settings = make_settings(
        num_requests=6000,
        rate_per_s=50.0,
        num_adapters=3000,
        arrivals=PerAdapter(4.0),
        popularity=Zipf(0.9),
    )
    workload = make_workload(settings)
    assert len(workload.requests) == 6000
    names = {request.adapter for request in workload.requests}
    assert len(names) > 500
    assert len({adapter.name for adapter in workload.adapters}) == 3000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_requests": 0}, "num_requests 0 and span_s 0.0: one of them"),
        ({"span_s": 5.0}, "one of them"),
        ({"rate_per_s": 0.0}, "rate_per_s 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"base_share": 1.5}, "base_share 1.5"),
        ({"num_adapters": 0}, "num_adapters 0: then base_share must be 1"),
        ({"arrivals": PerAdapter(2.0), "popularity": Distinct()}, "popularity Distinct"),
        ({"arrivals": PerAdapter(2.0), "popularity": Shifting(1.0, 5.0)}, "popularity Shifting"),
        ({"lengths": OfTrace()}, "only with arrivals FromTrace"),
        (
            {"arrivals": FromTrace("t", "azure"), "lengths": OfTrace(), "sessions": Sessions()},
            "prompts of a trace are whole",
        ),
        (
            {"num_adapters": 0, "base_share": 1.0, "lengths": PoolLengths("m-mid")},
            "num_adapters 0: lengths of a pool",
        ),
        (
            {"num_adapters": 0, "base_share": 1.0, "arrivals": PoolClients("m-mid")},
            "num_adapters 0: nobody to send",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make_settings(**changes)


def test_a_crowd_or_a_shift_that_never_comes_is_named() -> None:
    """240 requests of these presets would be a plain Poisson process under their name."""
    for name, says in (
        ("flash-crowd", "at_s 100.0: the run is over at"),
        ("shifting", "every_s 60"),
    ):
        with pytest.raises(WorkloadError, match=says):
            make_workload(replace(find_preset(name), num_requests=240, span_s=0.0))


def test_a_pool_needs_enough_adapters_and_a_preset_its_name() -> None:
    with pytest.raises(WorkloadError, match="num_adapters 8: at least 21"):
        make_workload(make_settings(popularity=PoolShares("m-large")))
    with pytest.raises(WorkloadError, match="preset 'azure': not one of azure-conv"):
        find_preset("azure")


def test_moments_of_a_workload_by_hand() -> None:
    moments = moments_of(make_small_workload())
    assert moments.num_requests == 4
    assert moments.rate_per_s == pytest.approx(4 / 1.5)
    assert moments.base_share == 0.25
    assert moments.top_shares[:2] == pytest.approx((2 / 3, 1.0))
    assert moments.rank_shares == pytest.approx({8: 1 / 3, 64: 2 / 3})
    assert (moments.prompt.p50, moments.prompt.mean) == (8.5, 8.5)
    assert moments.mean_turns == pytest.approx(4 / 3)


def test_an_index_of_dispersion_counts_whole_windows() -> None:
    at_s = np.array([0.1, 0.2, 0.3, 1.5, 2.5, 3.9, 4.0])  # 3, 1, 1, 1 and a window that just began
    assert dispersion(at_s, 1.0) == pytest.approx(1.0 / 1.5)
    assert np.isnan(dispersion(at_s, 4.0))


def test_published_figures_stand_beside_what_is_compared_with_them() -> None:
    """Not beside lengths that were scaled, and not beside instants at another trace's preset."""
    settings = small(find_preset("azure-code"))
    moments = moments_of(make_workload(settings))
    named = {line.name: line for line in lines_of(settings, moments)}
    assert named["prompt p99"].published == 7436
    assert named["CV of gaps"].published == 13.2
    assert named["prompt mean"].drawn == moments.prompt.mean
    scaled = replace(settings, name="mine", scale=Scale(prompt_factor=0.5))
    named = {line.name: line for line in lines_of(scaled, moments)}
    assert np.isnan(named["prompt p99"].published)
    assert np.isnan(named["CV of gaps"].published)


def test_the_command_line_writes_a_file_and_one_json_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.jsonl.gz"
    args = ["--preset", "cpu", "--out", str(path), "--requests", "30", "--rate", "5", "--seed", "4"]
    assert main(args) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    workload = read_workload(path)
    assert (workload.seed, len(workload.requests)) == (4, 30)
    assert figures["digest"] == digest_of(workload)
    assert figures["num_requests"] == 30
    assert main(["--preset", "cpu", "--requests", "0"]) == 2
