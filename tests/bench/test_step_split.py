"""The step split and the peers on a tiny workload: every part is seen, and parts add up."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.bench.throughput.answers import differing_share
from lorry.bench.throughput.ceiling import CeilingProbe, step_products
from lorry.bench.throughput.peer_worker import Peer, PeerSpec
from lorry.bench.throughput.split import TimedStep, split_base, split_lines, split_lora
from lorry.bench.throughput.split_probe import SplitProbe
from lorry.bench.throughput.stopwatch import Stopwatch
from lorry.bench.throughput.workload import ModelShape, Place
from lorry.bench.throughput.workload_files import WorkloadFiles, prepare_files
from lorry.tests.bench_builders import TINY, ticking

PLACE = Place(dtype="float32", num_threads=1)
MS = st.integers(0, 50).map(lambda ms: ms / 1e3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> WorkloadFiles:
    return prepare_files(TINY, tmp_path_factory.mktemp("workload"))


def test_outer_part_is_not_charged_for_an_inner_one() -> None:
    """Attention counted twice would hide that much of the rest."""
    watch = Stopwatch(ticking(0, 1, 2, 4, 8, 16, 32, 64))
    inner = watch.timed("inner", lambda: None, then="after")
    watch.timed("outer", lambda: (inner(), inner()))()
    assert watch.take() == {"outer": 1.0, "inner": 2.0 + 8.0, "after": 4.0 + 16.0}
    assert watch.take() == {}


def test_part_that_raises_is_closed() -> None:
    """One failed call would else charge everything after it to the wrong part."""
    watch = Stopwatch(ticking(0, 1, 1, 1, 1))
    with pytest.raises(ZeroDivisionError):
        watch.timed("a", lambda: 1 / 0)()
    watch.timed("b", lambda: None)()
    assert watch.take() == {"a": 1.0, "b": 1.0}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(base=st.lists(st.tuples(MS, MS, MS), min_size=1, max_size=9), extra=MS)
def test_parts_add_up_to_the_step(base: list[tuple[float, float, float]], extra: float) -> None:
    """A split that does not add up hides where the time went."""
    steps = [
        TimedStep(4, 4, {"products": a, "planning": b, "python": c + 1e-3}) for a, b, c in base
    ]
    longer = [
        TimedStep(4, 4, {**step.spent_s, "python": step.spent_s["python"] + extra})
        for step in steps
    ]
    without = split_base(steps, steps)
    with_adapters = split_lora(without, longer, longer)
    for split in (without, with_adapters):
        assert sum(split.parts_ms.values()) == pytest.approx(split.step_ms)
        assert split.untimed_ms == pytest.approx(split.step_ms)
    assert with_adapters.parts_ms["lora"] == pytest.approx(1e3 * extra)


def test_probe_sees_every_part_of_the_real_engine(files: WorkloadFiles, tmp_path: Path) -> None:
    """A part that moved out of the probe's sight would be counted as Python."""
    probe = SplitProbe(files, TINY, PLACE, tmp_path)
    splits = probe.measure()
    probe.close()
    base, lora = splits["base"]["decode"], splits["lora"]["decode"]
    assert base.num_steps == lora.num_steps == TINY.num_new_tokens - 1
    assert all(base.parts_ms[part] > 0 for part in base.parts_ms)
    assert set(lora.parts_ms) - set(base.parts_ms) == {"lora"}
    assert [line.partition(" (")[0].split(":")[0] for line in split_lines(splits)] == [
        "base, decode step",
        "lora, decode step",
    ]


def test_peers_answer_and_judge(files: WorkloadFiles) -> None:
    """PEFT's mixed batch is the reference of the adapters' rows: it must use them."""
    spec = PeerSpec(files, TINY, PLACE, mixed=True)
    peer = Peer(spec)
    answers = {cache: peer.generate(cache).token_ids for cache in ("dynamic", "static")}
    mixed = answers["dynamic"]
    assert answers["static"] == mixed, "two caches, one model"
    base = Peer(PeerSpec(files, TINY, PLACE, mixed=False)).generate("dynamic").token_ids
    assert differing_share(mixed, base) > 0.3
    own, foreign = peer.judge(mixed, by_base=False), peer.judge(mixed, by_base=True)
    assert own.chosen_share == 1.0
    assert own.worst_gap == 0.0
    assert foreign.chosen_share < 0.7
    assert 0 < foreign.mean_gap <= foreign.worst_gap <= 1
    assert peer.judge(base, by_base=True).chosen_share == 1.0


def test_files_are_made_once(files: WorkloadFiles) -> None:
    """Every run would else spend its first seconds on the same random numbers."""
    before = (files.base / "model.safetensors").stat().st_mtime_ns
    again = prepare_files(TINY, files.base.parent.parent)
    assert again == files
    assert (again.base / "model.safetensors").stat().st_mtime_ns == before
    assert not list(files.base.parent.parent.glob("*.part"))


def test_ceiling_is_of_all_products() -> None:
    """A product left out raises the ceiling, and the engine looks the worse for it."""
    shape = ModelShape()
    weights = sum(i * o for i, o in step_products(shape))
    assert weights == shape.num_layers * sum(i * o for i, o in shape.linears.values())
    ceiling = CeilingProbe(TINY, Place(num_threads=1)).measure(40)
    wall_s = (ceiling.prefill_ms + (TINY.num_new_tokens - 1) * ceiling.decode_ms) / 1e3
    assert ceiling.tok_s == pytest.approx(TINY.num_tokens / wall_s)
    assert ceiling.chunk_tokens == 40
