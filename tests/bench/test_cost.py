"""`lorry bench cost`: laws judged on steps whose truth is known, and what the command says."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lorry.bench.cost.command import main, parse
from lorry.bench.cost.judgement import (
    MIN_STEPS,
    Judgement,
    LawResult,
    TooFewSteps,
    judge_load,
    resampled_mean,
)
from lorry.bench.cost.laws import FULL, LAWS
from lorry.bench.cost.loads import LOADS, Load
from lorry.bench.cost.step_logs import BadStepLog, read_step_log, write_step_log
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.step_work import measure_work
from lorry.server.step_meter import MeteredStep

NUM_STEPS = 600
TRUTH = CostModel((4e-3, 5e-4, 3e-5, 2e-8, 1e-4, 3e-7, 2e-4, 8e-10, 2e-11))


def draw_steps(seed: int, ranks: tuple[int, ...], *, law: str, noise: float) -> list[MeteredStep]:
    """Small batches; each adapter has a rank. Under `padded` a kernel gives all the largest."""
    rng, steps = np.random.default_rng(seed), list[MeteredStep]()
    sizes = np.array([0, *(40_000 * rank for rank in ranks)])
    for number in range(NUM_STEPS):
        num_rows = int(rng.integers(1, 9))
        counts = np.where(rng.random(num_rows) < 0.1, rng.integers(2, 200, num_rows), 1)
        kinds = rng.integers(0, len(sizes), num_rows)
        own, largest = sizes[kinds], np.where(kinds, sizes[kinds].max(), 0)
        starts = rng.integers(0, 400, num_rows)
        work = measure_work(starts, counts, kinds - 1, own)
        done = measure_work(starts, counts, kinds - 1, largest if law == "padded" else own)
        seconds = TRUTH.step_s(done) * float(np.exp(rng.normal(0.0, noise)))
        steps.append(
            MeteredStep(
                float(number),
                seconds,
                1.5 * seconds,
                work,
                int(counts[kinds > 0].sum()),
                int(own.max()),
            )
        )
    return steps


def judged(law: str, *, noise: float = 0.03) -> Judgement:
    fit = draw_steps(1, (8, 64, 256), law=law, noise=noise)
    return judge_load(fit, draw_steps(2, (16, 32, 128), law=law, noise=noise))


def law_of(found: Judgement, name: str) -> LawResult:
    return next(law for law in found.laws if law.name == name)


def test_on_a_rank_exact_machine_the_rank_terms_win() -> None:
    """An ablation that finds nothing where the truth is in the terms it takes away."""
    found = judged("exact")
    full = law_of(found, FULL)
    assert full.decode_steps.mape < 0.035 and full.all_steps.r2 > 0.99
    assert found.ceiling.mape <= full.all_steps.mape + 0.002
    assert (full.worse, full.worse_low, full.worse_high) == (0.0, 0.0, 0.0)
    for name in ("no adapter_bytes", "padded", "counts", "none"):
        law = law_of(found, name)
        assert law.worse_low > 0.01, name
        assert law.decode_steps.mape == pytest.approx(full.decode_steps.mape + law.worse)
    assert found.online.mape == pytest.approx(0.5)  # as the log says


def test_on_a_padding_machine_the_padded_law_wins() -> None:
    """A bench that can only say that its own model is best."""
    found = judged("padded")
    assert law_of(found, "padded").worse_high < -0.01
    assert law_of(found, "padded").decode_steps.mape < 0.035


def test_laws_know_what_they_say() -> None:
    """By hand: a column too many in the law that is to be worse without it."""
    steps = draw_steps(3, (8, 64), law="exact", noise=0.0)[:20]
    widths = {law.name: law.columns(steps).shape for law in LAWS}
    assert widths == {
        "full": (20, 9),
        "no adapters": (20, 8),
        "no adapter_bytes": (20, 8),
        "no lora_token_bytes": (20, 8),
        "padded": (20, 9),
        "counts": (20, 8),
        "none": (20, 6),
    }
    step = steps[0]
    padded = next(law for law in LAWS if law.name == "padded").columns(steps)[0]
    assert padded.tolist() == [
        *step.work[:7],
        step.work.adapters * step.max_adapter_bytes,
        step.lora_tokens * step.max_adapter_bytes,
    ]


def test_neighbours_are_drawn_together() -> None:
    """Steps that are alike in a row would make an interval as narrow as if each were news."""
    rng = np.random.default_rng(4)
    values = np.repeat(rng.normal(size=40), 50)
    low, high = resampled_mean(values, seed=0)
    # 40 independent values, not 2,000: 4 standard errors across, of which each is 1 / sqrt(40).
    assert high - low == pytest.approx(3.92 * values.std() / 40**0.5, rel=0.15)
    assert low < values.mean() < high
    assert all(map(math.isnan, resampled_mean(values[:99], seed=0))), "too few to know neighbours"
    assert not any(map(math.isnan, resampled_mean(values[:100], seed=0)))


def test_too_few_steps_are_no_result() -> None:
    steps = draw_steps(5, (8,), law="exact", noise=0.0)
    with pytest.raises(TooFewSteps, match=f"9 judged steps; at least {MIN_STEPS}"):
        judge_load(steps, steps[:9])


def test_logs_that_are_given_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken: the one thing that a user can do with logs of another machine."""
    paths = [tmp_path / "fit.csv.gz", tmp_path / "judge.csv.gz"]
    for seed, path in enumerate(paths):
        write_step_log(path, draw_steps(seed, (8, 64), law="exact", noise=0.05))
    again = tmp_path / "again.csv.gz"
    write_step_log(again, read_step_log(paths[0]))
    assert again.read_bytes() == paths[0].read_bytes()
    result = tmp_path / "out" / "cost.json"
    flags = ["--fit", str(paths[0]), "--judge", str(paths[1]), "--result", str(result)]
    assert main(flags) == 0
    out = capsys.readouterr().out
    document = json.loads(out.splitlines()[-1])
    assert document == json.loads(result.read_text())
    assert document["bench"] == "cost" and 0.9 < document["cost_model_r2"] < 1
    assert 0.03 < document["cost_model_mape"] < 0.06
    assert "a linear model has MAPE" in out
    paths[1].write_bytes(b"no gzip")
    assert main(flags) == 1
    assert "judge.csv.gz" in capsys.readouterr().out


def test_flags_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--fit", "a"])
    assert "--fit and --judge go together" in capsys.readouterr().err
    committed = parse([]).result
    assert committed.name == "cost-cpu.json" and committed.parent.name == "results"
    assert parse(["--quick"]).result.parent.name == "build", "a quick run replaces no result"
    assert parse(["--device", "cuda:1"]).result.name == "cost-cuda.json"


@pytest.mark.parametrize("load", LOADS, ids=[load.name for load in LOADS])
def test_the_judging_trace_differs(load: Load) -> None:
    """A model judged on what it was fitted to is always good."""
    fit, other = load.fit, load.judged
    assert not {adapter.name for adapter in fit.adapters} & {a.name for a in other.adapters}
    assert not set(fit.ranks) & set(other.ranks)
    assert sum(adapter.weight for adapter in other.adapters) == pytest.approx(1.0)
    assert {adapter.rank for adapter in other.adapters} == set(other.ranks)
    groups = list(islice(other.groups(1000), 40))
    assert [len(ask.prompt) for ask in groups[0]] == [
        len(ask.prompt) for ask in next(other.groups(1000))
    ]
    asks = [ask for group in groups for ask in group]
    assert {len(group) for group in groups} == set(range(*other.group))
    assert all(other.prompt[0] <= len(ask.prompt) < other.prompt[1] for ask in asks)
    assert all(other.answer[0] <= ask.max_new_tokens < other.answer[1] for ask in asks)
    assert "" in {ask.adapter for ask in asks}


def test_a_log_that_is_no_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    write_step_log(path, draw_steps(6, (8,), law="exact", noise=0.0))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadStepLog, match=r"cut\.csv\.gz"):
        read_step_log(path)
