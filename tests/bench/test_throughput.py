"""The throughput bench: the load is the one promised, rows are compared fairly, and a run whose
adapters do nothing is no result."""

import importlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from lorry.bench.throughput.answers import (
    Answers,
    Judgement,
    differing_share,
    equal_until_divergence,
)
from lorry.bench.throughput.child import Child, ChildFailed
from lorry.bench.throughput.command import Options, conclude, make_ways, parse
from lorry.bench.throughput.figures import failures, goal_lines, ratios
from lorry.bench.throughput.peers import compare
from lorry.bench.throughput.rounds import Way, WrongWork, run_rounds
from lorry.bench.throughput.workload import BASE, ModelShape, Place, Workload
from lorry.tests.bench_builders import (
    TINY,
    FakeChild,
    FakeService,
    make_answers,
    make_report,
    make_row,
    make_work,
)

RIGHT = Answers(2.0, ((1,) * 8,) * 4)  # as many tokens as TINY asks for


def test_workload_is_the_one_promised() -> None:
    """Another model or load would still give a figure, and it would mean something else."""
    load, shape = Workload(), ModelShape()
    norms = (2 * shape.num_layers + 1) * shape.hidden_width
    linears = shape.num_layers * sum(i * o for i, o in shape.linears.values())
    embeddings = shape.vocab_size * shape.hidden_width
    assert linears + embeddings + norms == 124_635_456
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads) == (30, 9, 3)
    assert Counter(load.ranks) == {8: 2, 16: 2, 32: 2, 64: 2}
    prompts = load.prompts()
    assert len(prompts) == len({prompt[0] for prompt in prompts}) == 32
    assert {len(prompt) for prompt in prompts} == {128}
    assert load.num_tokens == 32 * 64
    assert set(Counter(load.names(mixed=True)).values()) == {4}
    assert set(load.names(mixed=False)) == {BASE}
    assert prompts == Workload().prompts()


def test_rows_take_turns() -> None:
    """One row after the other would give a slow minute of the machine to one row alone."""
    log: list[str] = []
    peers = {name: FakeChild(RIGHT, log, name) for name in ("hf", "peft")}
    ways = make_ways(cast(Any, FakeService(RIGHT, log)), TINY, cast(Any, peers))
    told: list[str] = []
    rows = run_rounds(ways, 2, (4, 8), server_cpu_s=lambda: 0.0, tell=told.append)
    one_round = [
        "lorry generate base",
        "hf generate dynamic",
        "hf generate static",
        "lorry generate mixed",
        "peft generate dynamic",
        "peft generate static",
    ]
    assert log == one_round * 3
    assert [row.way.key for row in rows] == ["base", "hf", "hf_static", "lora", *ways_of("peft")]
    assert [line.partition(":")[0] for line in told] == ["warm-up", "round 1", "round 2"]


def test_first_round_does_not_count() -> None:
    """It loads adapters and touches memory for the first time."""
    walls_s = iter([8.0, 2.0, 4.0, 1.0])
    way = Way("base", "base", "", lambda: Answers(next(walls_s), RIGHT.token_ids))
    (row,) = run_rounds([way], 3, (4, 8), server_cpu_s=lambda: 0.0, tell=lambda _: None)
    assert (row.warm_up_tok_s, row.tok_s, row.median_tok_s) == (4.0, (16.0, 8.0, 32.0), 16.0)


def ways_of(peer: str) -> list[str]:
    return [peer, f"{peer}_static"]


def test_peers_that_were_not_asked_for_have_no_row() -> None:
    """`--peers hf` must not wait for PEFT."""
    service: Any = FakeService(RIGHT, [])
    ways = make_ways(service, TINY, cast(Any, {"hf": FakeChild(RIGHT, [])}))
    assert [way.key for way in ways] == ["base", *ways_of("hf"), "lora"]


def test_server_is_watched_while_a_peer_runs() -> None:
    """A server that spins would slow its peers and look the better for it."""
    spent_s = iter([0.0, 0.1, 5.0, 5.6, 9.0, 9.2])
    way = Way("hf", "hf", "", lambda: RIGHT, is_peer=True)
    own = Way("base", "base", "", lambda: RIGHT)
    rows = run_rounds(
        [own, way], 2, (4, 8), server_cpu_s=lambda: next(spent_s), tell=lambda _: None
    )
    assert [row.server_share for row in rows] == [0.0, pytest.approx(0.3)]
    assert "30% of a core while hf ran" in failures(make_work(), {"hf": 0.3})[0]


@pytest.mark.parametrize("wrong", [((1,) * 8,) * 3, ((1,) * 8, (1,) * 8, (1,) * 8, (1,) * 7)])
def test_other_work_is_no_row(wrong: tuple[tuple[int, ...], ...]) -> None:
    """An answer that ends early or is missing makes its row faster."""
    way = Way("hf", "transformers", "", lambda: Answers(1.0, wrong))
    with pytest.raises(WrongWork, match="transformers"):
        run_rounds([way], 1, (4, 8), server_cpu_s=lambda: 0.0, tell=lambda _: None)


def test_shares_of_answers() -> None:
    """After the first difference two answers may agree by chance; that is no agreement."""
    left, right = ((1, 2, 3, 4), (5, 6, 7, 8)), ((1, 9, 3, 4), (5, 6, 7, 8))
    assert equal_until_divergence(left, right) == 5 / 8
    assert differing_share(left, right) == 1 / 8
    assert equal_until_divergence(left, left) == 1
    assert differing_share(left, left) == 0


def test_ratios_are_told_beside_their_targets() -> None:
    """A target that was missed must say by how much, and none may be claimed by rounding."""
    found = ratios({"base": 300.0, "hf": 100.0, "lora": 179.0, "peft": 60.0})
    assert set(found) == {"base_over_hf", "lora_over_base", "lora_over_peft"}
    base, lora, peft = goal_lines(found, with_targets=True)
    assert base == "base is 3.00 x hf: target 2.5 reached, stretch 3.3 missed by 0.30 (9%)"
    assert "target 0.6 missed by 0.00 (1%), stretch 0.75 missed by 0.15 (20%)" in lora
    assert peft == "lora is 2.98 x peft: target 3 missed by 0.02 (1%)"
    assert goal_lines(found, with_targets=False)[0] == "base is 3.00 x hf"


@pytest.mark.parametrize(
    ("work", "says"),
    [
        ({"lora_differing": 0.29}, "the adapters change 29.0%"),
        ({"lora_by_base": Judgement(0.8, 0.0, 0.0)}, "by the base's own logits"),
        ({"lora_by_peft": Judgement(0.5, 0.4, 0.1)}, "lora: its peer chooses 50.0%"),
        ({"base_by_hf": Judgement(0.5, 0.4, 0.1)}, "base: its peer chooses 50.0%"),
    ],
)
def test_run_that_is_not_the_same_work_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], work: dict[str, Any], says: str
) -> None:
    """An engine with LoRA off is fast; its figure must not reach the file that is quoted."""
    code = run_conclude(tmp_path / "result.json", make_report(work=make_work(**work)))
    assert code == 1
    assert not (tmp_path / "result.json").exists()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert says in document["same_work"]["failures"][0]


def test_result_is_one_line_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the figures looks for these names, at the end of the output or in the file."""
    keys = ("base", "hf", "hf_static", "lora", "peft")
    rows = [make_row(key, 10.0 * idx, 30.0 * idx, 20.0 * idx) for idx, key in enumerate(keys, 1)]
    assert run_conclude(tmp_path / "deep" / "result.json", make_report(*rows)) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == json.loads((tmp_path / "deep" / "result.json").read_text())
    assert line["bench"] == "throughput"
    assert [line[f"{key}_tok_s"] for key in keys] == [20.0, 40.0, 60.0, 80.0, 100.0]
    assert line["ratios"]["base_over_hf"] == 0.5
    assert line["rows"][0]["tok_s"] == [10.0, 30.0, 20.0], "every round is kept"
    assert line["targets"]["lora_over_base"] == {"target": 0.6, "stretch": 0.75}
    assert {"ceiling", "step_split", "machine", "workload", "same_work"} <= set(line)


def run_conclude(path: Path, report: Any) -> int:
    options = Options(("hf",), 1, Place(), True, path, path.parent)
    return conclude(report, options, Console(file=io.StringIO()))


def test_comparison_asks_the_right_logits() -> None:
    """The adapters' tokens under the base's logits show whether the adapters act at all."""
    log: list[str] = []
    peers = {name: FakeChild(make_answers(), log, name) for name in ("hf", "peft")}
    rows = {key: make_row(key) for key in ("base", "lora", "hf", "peft")}
    work = compare(rows, peers)
    assert log == ["hf judge True", "peft judge False", "hf judge True"]
    assert (work.base_equal_hf, work.lora_equal_peft, work.lora_differing) == (1.0, 1.0, 0.0)
    alone = compare({key: rows[key] for key in ("base", "lora")}, {})
    assert (alone.base_by_hf, alone.lora_by_base, alone.base_equal_hf) == (None, None, None)


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    """A result of a GPU must not overwrite the CPU's; a mistyped peer must not be left out."""
    assert parse([]).peers == ("hf", "peft")
    assert parse(["--peers", "none"]).peers == ()
    assert parse(["--peers", "peft"]).peers == ("peft",)
    assert parse([]).result.name == "throughput-cpu.json"
    assert parse(["--device", "cuda:1"]).result.name == "throughput-cuda.json"
    for wrong in (["--peers", "hf,vllm"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            parse(wrong)
    assert "there is no peer 'vllm'" in capsys.readouterr().err


def test_child_answers_and_says_what_failed() -> None:
    """A peer that dies must end the bench with its reason, not leave it waiting."""
    with Child(importlib.import_module, "os.path") as child:
        assert child.call("join", "a", "b") == "a/b"
        with pytest.raises(ChildFailed, match="TypeError"):
            child.call("join", 3)
        assert child.call("basename", "a/b") == "b", "one failure does not end it"
    with Child(importlib.import_module, "os") as child, pytest.raises(ChildFailed, match="code 3"):
        child.call("_exit", 3)
    with (
        pytest.raises(ChildFailed, match="ModuleNotFoundError"),
        Child(importlib.import_module, "no.such.module"),
    ):
        pass
