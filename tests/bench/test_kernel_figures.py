"""The figures of the kernel bench: the worst of the named cases, and none that flatters us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lorry.bench.kernels.cases import RANKS, Case, factor_bytes, must_move_bytes
from lorry.bench.kernels.figures import COMPARED, HEADLINE, MIXED_DECODE, compare, figures_of
from lorry.bench.kernels.rows import Bounds, Row, make_row
from lorry.bench.kernels.shapes import LAYERS

Change = Callable[[list[Row]], list[Row]]


def make_measured(
    case: str, impl: str, ms: float, *, prepare: float = 0.0, fraction: float = 0.5
) -> Row:
    return Row(
        "lora",
        case,
        impl,
        peer=impl.split("-", maxsplit=1)[0] if impl != "triton" else "",
        is_tuned=impl.endswith("-tuned"),
        ms=ms,
        ms_with_prepare=ms + prepare,
        gb_s=1.0,
        fraction_of_peak=fraction,
        factor_fraction=fraction,
        how="graph",
        is_cold=True,
    )


def make_rows(case: str, *, vllm: float = 4.0, sglang: float = 6.0) -> list[Row]:
    """Ours takes 1 ms; untuned peers are slower."""
    return [
        make_measured(case, "triton", 1.0),
        make_measured(case, "vllm", 2 * vllm),
        make_measured(case, "vllm-tuned", vllm),
        make_measured(case, "sglang-c16-tuned", sglang),
    ]


def test_a_row_is_of_one_layer() -> None:
    """The step runs several layers; its time over one layer's bytes would be a made-up figure."""
    case = Case(LAYERS["llama-8b"], "decode", 64, 64, "r16")
    moved = must_move_bytes(case, 2)
    row = make_row(
        case,
        "i",
        Bounds(2, peak_gb_s=moved / 1e6, cache_bytes=2 * moved),
        step_ms=8.0,
        prepare_ms=6.4,
        num_layers=4,
        how="graph",
        max_error=0.0,
    )
    assert (row.ms, row.gb_s) == (2.0, pytest.approx(moved / 2e6))
    assert row.fraction_of_peak == pytest.approx(0.5)
    assert row.factor_fraction == pytest.approx(0.5 * factor_bytes(case, 2) / moved)
    # Prepared once for the model's 32 layers, not for the four that were timed.
    assert row.ms_with_prepare == pytest.approx(2.2)
    assert row.is_cold


def test_a_row_found_in_the_cache_says_so() -> None:
    """A cache is faster than the memory that the fraction is of."""
    case = Case(LAYERS["tiny"], "decode", 8, 8, "mixed")
    rows = [
        make_row(
            case,
            "i",
            Bounds(4, 1.0, must_move_bytes(case, 4)),
            step_ms=1.0,
            prepare_ms=0.0,
            num_layers=layers,
            how="cpu",
            max_error=0.0,
        )
        for layers in (1, 2)
    ]
    assert [row.is_cold for row in rows] == [False, True]


def test_bandwidth_fraction_is_the_worst_of_the_headline_cases() -> None:
    """The best of three would hide the mix that a server has; two of three are not three."""
    rows = [
        make_measured(n, "triton", 1.0, fraction=f)
        for n, f in zip(HEADLINE, (0.9, 0.7, 0.8), strict=True)
    ]
    rows.append(make_measured(HEADLINE[0], "vllm", 1.0, fraction=0.1))
    assert len(HEADLINE) == len(RANKS)
    name = "lora_bandwidth_fraction"
    assert figures_of(rows)[name] == 0.7
    assert figures_of(rows[1:])[name] is None
    assert figures_of([replace(rows[0], factor_fraction=None), *rows[1:]])[name] is None
    assert figures_of([replace(row, is_cold=False) for row in rows])[name] is None
    # The target counts true-rank bytes; activations are another column.
    assert figures_of([replace(row, fraction_of_peak=1.0) for row in rows])[name] == 0.7


def test_peers_are_compared_by_their_best_with_what_is_prepared() -> None:
    """Against the worst peer every kernel looks good; and a sort on the device costs its user."""
    rows = make_rows("c")
    found = compare("c", rows)
    assert (found.ratio, found.best_peer, found.why_not) == (4.0, "vllm-tuned", "")
    rows[2] = make_measured("c", "vllm-tuned", 4.0, prepare=3.0)
    found = compare("c", rows)
    assert (found.ratio, found.best_peer) == (6.0, "sglang-c16-tuned")
    assert found.ratio_without_prepare == 4.0
    rows[0] = make_measured("c", "triton", 1.0, prepare=1.0)
    assert compare("c", rows).ratio == 3.0
    # Neither a peer nor tuned: not what the promise is about.
    gather = replace(make_measured("c", "gather", 0.1), peer="")
    assert compare("c", [*rows, gather]).ratio == 3.0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[1:], "triton was not measured"),
        (lambda rows: [rows[0], rows[3]], "vllm was not measured"),
        (lambda rows: rows[:3], "sglang was not measured"),
        (lambda rows: [rows[0], rows[1], rows[3]], "vllm was not tuned"),
        (lambda rows: [*rows[:3], replace(rows[3], how="eager (x)")], "not recorded: eager"),
        (lambda rows: [replace(rows[0], is_cold=False), *rows[1:]], "cache"),
    ],
)
def test_an_unfair_comparison_does_not_count(change: Change, why: str) -> None:
    """A peer that launches one by one, is untuned or is missing loses to anything."""
    rows = [row for case in MIXED_DECODE[1:] for row in make_rows(case)]
    unfair = change(make_rows(MIXED_DECODE[0]))
    assert why in compare(MIXED_DECODE[0], unfair).why_not
    name = "mixed_rank_vs_best_peer"
    assert figures_of([*rows, *unfair])[name] is None
    assert figures_of([*rows, *unfair])[f"{name}_without_prepare"] is None
    assert figures_of([*rows, *make_rows(MIXED_DECODE[0])])[name] == 4.0


def test_no_case_hides_another() -> None:
    """A mean of 6 and 0.5 looks like a win; so does one over the cases that there was time for."""
    rows = [row for case in MIXED_DECODE[1:] for row in make_rows(case)]
    lost = make_rows(MIXED_DECODE[0], vllm=0.5)
    found = figures_of([*rows, *lost])
    assert found["mixed_rank_vs_best_peer"] == 0.5
    assert found["mixed_rank_bandwidth_fraction"] == 0.5
    assert found["same_rank_vs_best_peer"] is found["mixed_rank_prefill_vs_best_peer"] is None
    assert {entry["case"] for entry in found["versus_peers"]} == set().union(*COMPARED.values())
    assert figures_of(rows)["mixed_rank_vs_best_peer"] is None
    assert figures_of(rows)["mixed_rank_bandwidth_fraction"] is None


def test_each_figure_has_cases_of_its_own() -> None:
    """Decode and prefill, mixed and same ranks, would answer for each other."""
    assert all(len(cases) >= 3 for cases in COMPARED.values())
    assert all("/decode-" in case and case.endswith("-mixed") for case in MIXED_DECODE)
    names = [case for cases in COMPARED.values() for case in cases]
    assert len(set(names)) == len(names)
    assert set(HEADLINE) <= set(names)
