"""For tests of the throughput bench: a tiny workload, invented rows, and fakes of who answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorry.bench.machine import Machine
from lorry.bench.throughput.answers import Answers, Judgement
from lorry.bench.throughput.ceiling import Ceiling
from lorry.bench.throughput.document import Report
from lorry.bench.throughput.figures import SameWork
from lorry.bench.throughput.rounds import Row, Way
from lorry.bench.throughput.split import StepSplit
from lorry.bench.throughput.workload import ModelShape, Place, Workload

TINY = Workload(
    shape=ModelShape(
        num_layers=2,
        hidden_width=64,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=96,
        vocab_size=300,
        max_len=128,
    ),
    ranks=(4, 8),
    num_requests=4,
    num_prompt_tokens=20,
    num_new_tokens=8,
)


def make_answers(*token_ids: tuple[int, ...], wall_s: float = 1.0) -> Answers:
    return Answers(wall_s, token_ids or ((1, 2), (3, 4)))


def make_row(key: str = "base", *tok_s: float, answers: Answers | None = None) -> Row:
    counted = tok_s or (10.0, 30.4, 20.0)
    way = Way(key, f"row {key}", "one way", make_answers, is_peer=key not in ("base", "lora"))
    return Row(way, 1.0, counted, answers or make_answers())


def make_work(**overrides: Any) -> SameWork:
    """Good work: adapters act, and the peers choose what Lorry chose."""
    settings: dict[str, Any] = {
        "lora_differing": 0.9,
        "base_equal_hf": 0.5,
        "lora_equal_peft": 0.5,
        "base_by_hf": Judgement(0.99, 0.01, 0.0001),
        "lora_by_peft": Judgement(0.98, 0.01, 0.0001),
        "lora_by_base": Judgement(0.1, 0.5, 0.2),
    }
    return SameWork(**{**settings, **overrides})


def make_report(*rows: Row, work: SameWork | None = None, device: str = "cpu") -> Report:
    split = StepSplit(3, 30.0, 29.0, {"products": 20.0, "attention": 10.0})
    return Report(
        workload=TINY,
        place=Place(device),
        rows=rows or (make_row("base", 100.0), make_row("lora", 70.0)),
        work=work or make_work(),
        ceiling=Ceiling(1000.0, 15.0, 900.0, 1024),
        splits={"base": {"decode": split}},
        machine=Machine("a CPU", 2, "", "Linux", "3.11", {"torch": "2"}, "abc"),
        load_before=0.1,
    )


class FakeChild:
    """A peer that remembers what it was asked and answers what it was given."""

    def __init__(self, answers: Answers, log: list[str], name: str = "peer") -> None:
        self._answers = answers
        self._log = log
        self._name = name

    def call(self, method: str, *args: object, **options: object) -> Any:
        self._log.append(f"{self._name} {method} {options.get('by_base', args[0])}")
        return self._answers if method == "generate" else Judgement(0.95, 0.01, 0.0)


class FakeService:
    """A server that answers at once."""

    def __init__(self, answers: Answers, log: list[str]) -> None:
        self._answers = answers
        self._log = log

    def generate(self, *, mixed: bool) -> Answers:
        self._log.append(f"lorry generate {'mixed' if mixed else 'base'}")
        return self._answers


def ticking(*steps_s: float) -> Callable[[], float]:
    """A clock that moves by these steps, one at each reading."""
    moves = iter(steps_s)
    now_s = 0.0

    def read() -> float:
        nonlocal now_s
        now_s += next(moves)
        return now_s

    return read
