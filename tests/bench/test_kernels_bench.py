"""The kernel bench: it counts the bytes that must move, prints no speed of a wrong result, and
compares with the best of the peers."""

import itertools
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lorry.bench import bandwidth
from lorry.bench.kernels.cases import (
    CPU,
    QUICK,
    RANKS,
    Case,
    all_cases,
    factor_bytes,
    must_move_bytes,
    num_layers,
    pick_cases,
    row_bytes,
)
from lorry.bench.kernels.check import WrongResult, check, make_expected
from lorry.bench.kernels.command import conclude, parse, run, wanted
from lorry.bench.kernels.inputs import Inputs
from lorry.bench.kernels.measure import Bench
from lorry.bench.kernels.ours import OURS, make_cpu, make_tiles
from lorry.bench.kernels.rivals.fetch import take
from lorry.bench.kernels.rivals.folder import PEERS, Peer
from lorry.bench.kernels.rivals.sglang_way import chunk_rows
from lorry.bench.kernels.rows import failures
from lorry.bench.kernels.shapes import LAYERS, LayerShape
from lorry.bench.kernels.torch_ways import GatherBmm, PeftLoop
from lorry.bench.kernels.verify import RUNS
from lorry.bench.kernels.way import NamedWay, NotMeasured, Way
from lorry.kernels.lora.reference import gather_factor

LLAMA, TINY = LAYERS["llama-8b"], LAYERS["tiny"]
# Wider than a tile's 512 columns, and by no whole number of them.
ODD = LayerShape("odd", hidden=700, q_out=40, kv_out=24, mlp=520, model_layers=2)


def make_case(
    layer: LayerShape = TINY, *, num_rows: int = 4, num_adapters: int = 3, ranks: str = "mixed"
) -> Case:
    return Case(layer, "decode", num_rows, num_adapters, ranks)


def make_inputs(case: Case, *, layers: int = 2, dtype: torch.dtype = torch.float32) -> Inputs:
    return Inputs(case, num_layers=layers, dtype=dtype, device=torch.device("cpu"))


def test_a_rank_of_llama_is_five_mebibytes() -> None:
    """With the wrong widths every bandwidth of this bench would be wrong."""
    one = make_case(LLAMA, num_rows=1, num_adapters=1, ranks="r16")
    assert factor_bytes(one, 2) * 32 == 16 * 5 * 2**20
    assert [group.out_width for group in LLAMA.groups] == [6144, 4096, 28672, 4096]
    assert [group.in_width for group in LLAMA.groups] == [4096, 4096, 4096, 14336]


def test_bytes_are_of_true_ranks_and_of_each_row_once() -> None:
    """Counted at the padded rank, the slowest kernel would have the best bandwidth."""
    case = make_case(TINY, num_rows=6, num_adapters=5)
    widths = 2 * (96 + 32) + (96 + 64) + (64 + 96) + 2 * (96 + 160) + (160 + 96)
    assert sorted(case.ranks) == [8, 16, 32, 64, 128]
    assert factor_bytes(case, 4) == 248 * widths * 4
    reads, writes = 96 + 64 + 96 + 160, 128 + 96 + 320 + 96
    assert row_bytes(case, 4) == 6 * (reads + 2 * writes) * 4
    assert must_move_bytes(case, 4) == factor_bytes(case, 4) + row_bytes(case, 4)


def test_layers_outgrow_the_cache() -> None:
    """A layer found in the cache at its next turn would be faster than memory."""
    case = make_case(LLAMA, num_rows=1, num_adapters=1, ranks="r16")
    cache = 60 << 20
    layers = num_layers(case, 2, cache, 1000)
    assert layers * must_move_bytes(case, 2) >= 2 * cache
    assert num_layers(case, 2, cache, 8) == 8
    assert (
        num_layers(make_case(LLAMA, num_rows=64, num_adapters=64, ranks="r64"), 2, cache, 99) == 2
    )


def test_cases_are_those_of_the_issue() -> None:
    """A missing batch size or rank mix would go unnoticed among a hundred rows."""
    cases = list(all_cases())
    assert len({case.name for case in cases}) == len(cases)
    for name in ("llama-8b", "qwen-0.5b"):
        mine = [case for case in cases if case.layer.name == name]
        assert {c.num_rows for c in mine} == {1, 8, 64, 256, 512, 2048, 8192}
        assert {c.num_adapters for c in mine} == {1, 8, 64}
        assert {c.ranks_name for c in mine} == set(RANKS)
    for pattern in (*QUICK, *CPU):
        assert pick_cases((pattern,)), pattern
    headline = {f"llama-8b/decode-T64-D64-{ranks}" for ranks in RANKS}
    assert headline <= {case.name for case in pick_cases(QUICK)}


@pytest.mark.parametrize(("num_rows", "num_adapters"), [(7, 3), (64, 64), (5, 1)])
def test_segments_share_out_all_rows(num_rows: int, num_adapters: int) -> None:
    """An adapter without rows would be counted in the bytes and never be read."""
    segments = make_case(num_rows=num_rows, num_adapters=num_adapters).segments
    assert segments[0].start == 0 and segments[-1].end == num_rows
    assert all(a.end == b.start for a, b in itertools.pairwise(segments))
    assert len({s.slot for s in segments}) == num_adapters
    assert min(s.end - s.start for s in segments) >= 1


def test_dense_factors_are_what_the_tiles_hold() -> None:
    """Peers would be given other weights than our kernels, and none could agree."""
    inputs = make_inputs(make_case(ODD, num_adapters=2), layers=1)
    cols = inputs.table.tile_cols
    for slot in range(2):
        for site, tiles in inputs.table.factors(slot).items():
            shape, dense = inputs.table.sites[site], inputs.dense(slot, site)
            for offsets, width, found in (
                (tiles.a_offsets, shape.in_width, dense.a_RI),
                (tiles.b_offsets, shape.out_width, dense.b_RO),
            ):
                whole = gather_factor(
                    inputs.pool_PE, offsets, rank=tiles.rank, width=width, tile_cols=cols
                )
                assert torch.equal(found, whole)


@pytest.mark.parametrize("build", [make_cpu, make_tiles, GatherBmm, PeftLoop])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ways_agree_with_the_reference(
    build: type[GatherBmm] | type[PeftLoop], dtype: torch.dtype
) -> None:
    """A way that computes less than the others would win every row."""
    inputs = make_inputs(make_case(), dtype=dtype)
    assert check(build(inputs), inputs, make_expected(inputs)) > 0 or dtype == torch.float32


class Broken:
    """A way with one of the mistakes that a fast kernel may have."""

    def __init__(self, inputs: Inputs, mistake: str) -> None:
        self._inputs, self._mistake, self._right = inputs, mistake, make_tiles(inputs)

    def prepare(self) -> None:
        self._right.prepare()

    def add(self, layer: int, group: int) -> None:
        out_TO = self._inputs.out[layer][group]
        if self._mistake == "nothing":
            return
        self._right.add(0 if self._mistake == "first layer" else layer, group)
        if self._mistake == "one row":
            out_TO[-1] = self._inputs.base(layer, group)[-1]
        elif self._mistake == "nan":
            out_TO[0, 0] = torch.nan
        elif self._mistake == "no base":
            out_TO -= self._inputs.base(layer, group)


@pytest.mark.parametrize("mistake", ["nothing", "one row", "nan", "no base", "first layer"])
def test_a_wrong_result_has_no_speed(mistake: str) -> None:
    """A kernel that skips work is the fastest of all."""
    case = make_case()
    inputs = make_inputs(case)
    with pytest.raises(WrongResult):
        check(Broken(inputs, mistake), inputs, make_expected(inputs))
    named = NamedWay("broken", "", lambda inputs: Broken(inputs, mistake))
    bench = Bench(torch.device("cpu"), torch.float32, [named], peak_gb_s=1.0)
    (row,) = bench.run([case])
    assert row.failed and row.ms is None and "off by" in row.not_measured
    assert failures([row]) and not failures([replace(row, peer="vllm")])


def raising(error: Exception, peer: str = "vllm") -> NamedWay:
    def build(inputs: Inputs) -> Way:
        raise error

    return NamedWay("way", "", build, peer)


def test_a_way_that_breaks_is_a_row() -> None:
    """One kernel that does not compile would take all other rows with it."""
    ways = [raising(RuntimeError("no such config")), raising(NotMeasured("no device"))]
    bench = Bench(torch.device("cpu"), torch.float32, ways, peak_gb_s=1.0)
    broke, skipped = bench.run([make_case()])
    assert (broke.failed, broke.not_measured) == (True, "RuntimeError: no such config")
    assert (skipped.failed, skipped.not_measured) == (False, "no device")


@pytest.fixture
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling in no time; it may be a cache's."""
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 1 << 22)


@pytest.mark.usefixtures("small_copies")
def test_a_cpu_run_writes_rows_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clean clone has no GPU and no peers, and still has to give rows."""
    result = tmp_path / "kernels.json"
    flags = ["--cases", "tiny/decode-T1-D1-r16", "--threads", "1", "--dtype", "fp32"]
    options = parse([*flags, "--result", str(result)])
    console = Console(quiet=True)
    assert conclude(run(options, console), options, console) == 0
    document = json.loads(result.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    rows = {row["impl"]: row for row in document["rows"]}
    assert set(rows) == {"cpu", "tiles", "triton", "gather-bmm", "peft-loop"}
    for impl in ("cpu", "tiles", "gather-bmm", "peft-loop"):
        row = rows[impl]
        assert {row["op"], row["case"]} == {"lora", "tiny/decode-T1-D1-r16"}
        assert row["ms"] > 0 and row["gb_s"] > 0 and 0 < row["fraction_of_peak"] < 1
        # Kilobytes, whatever the cache.
        assert not row["is_cold"] and row["ms_with_prepare"] > row["ms"]
    assert rows["triton"]["ms"] is None and "CUDA" in rows["triton"]["not_measured"]
    assert set(document["not_measured"]) == {"vllm", "sglang"}
    assert document["lora_bandwidth_fraction"] is document["mixed_rank_vs_best_peer"] is None
    assert document["is_whole"] and document["failures"] == []
    assert document["copy_gb_s"] > 0 and document["machine"]["commit"]


def test_cases_after_the_time_limit_are_named() -> None:
    """A run cut short that looks whole would be quoted as one."""
    bench = Bench(torch.device("cpu"), torch.float32, [], deadline_s=0.0)
    assert list(bench.run([make_case()])) == []
    assert bench.left_out == {make_case().name: "no time was left"}


def test_time_is_looked_at_between_ways() -> None:
    """One case with many ways would outlast the limit, and its part of `make gpu` be ended."""
    bench = Bench(torch.device("cpu"), torch.float32, [], peak_gb_s=1.0)

    def build(inputs: Inputs) -> Way:
        bench.deadline_s = 0.0
        raise NotMeasured("slow")

    bench.ways = [NamedWay("first", "", build), NamedWay("second", "", make_tiles)]
    assert [row.impl for row in bench.run([make_case()])] == ["first"]
    assert bench.left_out == {f"second at {make_case().name}": "no time was left"}


@pytest.mark.parametrize("peer", ["vllm", ""])
def test_nothing_runs_on_a_broken_device(peer: str) -> None:
    """Times taken after it mean nothing; and only our own kernel's fault may fail the run."""
    fatal = raising(RuntimeError("CUDA error: an illegal memory access was encountered"), peer)
    ways = [fatal, NamedWay("second", "", make_tiles)]
    bench = Bench(torch.device("cpu"), torch.float32, ways, peak_gb_s=1.0)
    (row,) = bench.run([make_case(), make_case(num_rows=5)])
    assert row.failed and bool(failures([row])) == (not peer)
    assert len(bench.left_out) == 2 and "way at tiny" in bench.left_out[make_case(num_rows=5).name]


@pytest.mark.usefixtures("small_copies")
def test_a_run_that_is_ended_leaves_its_rows(tmp_path: Path) -> None:
    """The time limit of `make gpu` would throw away minutes of measurements."""
    result = tmp_path / "kernels.json"
    flags = ["--cases", "tiny/decode-T1-D1-r16", "--impls", "cpu,tiles", "--dtype", "fp32"]

    class Ended(Exception):
        pass

    class Ending(Console):
        """Ends the run when it tells the second row."""

        def print(self, *objects: object, **options: object) -> None:
            if " tiles: " in str(objects[0]):
                raise Ended

    with pytest.raises(Ended):
        run(parse([*flags, "--result", str(result)]), Ending())
    document = json.loads(result.read_text())
    assert not document["is_whole"]
    assert [row["impl"] for row in document["rows"]] == ["cpu", "tiles"]


def test_ways_are_picked_by_pattern() -> None:
    """`--impls` that matches nothing it should would silently measure nothing."""
    ways = [*OURS["cpu"]]
    assert [way.name for way in wanted(ways, ("t*",))] == ["tiles", "triton"]
    assert wanted(ways, ()) == ways


def test_gather_refuses_what_no_server_would_gather() -> None:
    """Eight thousand padded copies of a factor would end the run for want of memory."""
    case = replace(make_case(LLAMA, num_rows=8192, num_adapters=8), phase="prefill")
    inputs = make_inputs(make_case(TINY))
    inputs.case = case
    with pytest.raises(NotMeasured, match="GiB"):
        GatherBmm(inputs)


@pytest.mark.parametrize(
    ("num_rows", "max_chunk", "chunk"),
    [(8, 16, 16), (8192, 16, 16), (63, 128, 16), (64, 128, 32), (256, 128, 128), (256, 64, 64)],
)
def test_chunks_are_sglangs(num_rows: int, max_chunk: int, chunk: int) -> None:
    """A peer run with other chunks than its own rule gives is not that peer."""
    assert chunk_rows(num_rows, max_chunk) == chunk


def make_wheel(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_only_the_named_files_are_taken(tmp_path: Path) -> None:
    """A whole wheel would not travel, and a renamed file must not be missed in silence."""
    peer = Peer("toy", "toy-cpu", "1", "any", ("toy/ops/*.json", "toy/kernel.py"))
    licence = "toy_cpu-1.dist-info/licenses/LICENSE"
    names = ["toy/kernel.py", "toy/ops/a.json", "toy/server.py", licence]
    wheel = make_wheel(tmp_path / "toy.whl", names)
    taken = take(peer, wheel, tmp_path / "peers")
    assert sorted(taken) == sorted(["toy/ops/a.json", "toy/kernel.py", licence])
    assert not (tmp_path / "peers/toy/server.py").exists()
    assert (tmp_path / "peers/toy/kernel.py").read_text() == "toy/kernel.py"
    with pytest.raises(ValueError, match="gone"):
        take(replace(peer, files=("toy/gone.py",)), wheel, tmp_path / "peers")
    evil = make_wheel(tmp_path / "evil.whl", ["../x.json", licence])
    with pytest.raises(ValueError, match="outside"):
        take(replace(peer, files=("*.json",)), evil, tmp_path / "peers")


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.skipif(not all(peer.is_there() for peer in PEERS), reason="`make peers` was not run")
def test_peers_are_fed_right() -> None:
    """A peer given the wrong scale, slot or chunk would lose for our mistake."""
    # In a process of its own: kernels are interpreted or not from their import on.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lorry.bench.kernels.verify"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == 9


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, and rows checked")
def test_our_kernels_are_fed_right() -> None:
    """A bench that gives its own kernels other rows or tiles would measure something else."""
    ours = [(case, layers, build) for name, case, layers, build in RUNS if name == "triton"]
    assert ours
    for case, layers, build in ours:
        inputs = make_inputs(case, layers=layers, dtype=torch.float16)
        check(build(inputs), inputs, make_expected(inputs))
