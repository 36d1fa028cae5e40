"""The compile check: what it reads, what it refuses, what it remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorry.bench.compile.__main__ import format_document, make_document
from lorry.bench.compile.binary import Binary, Usage, read_usage
from lorry.bench.compile.judge import CaseTerms, find_faults, find_lonely, narrowest_bytes
from lorry.bench.compile.lane import CompileLane, Outcome
from lorry.bench.compile.loads import Load, read_loads
from lorry.bench.compile.orders import read_orders
from lorry.bench.compile.store import BUILD_DIR, SOURCES, BinaryStore, source_hash
from lorry.bench.compile.table import format_outcome
from lorry.bench.throughput.child import ChildFailed
from lorry.tests.compile_named import doomed_cases, small_cases, twins

TESTS_DIR = Path(__file__).parent.parent
TERMS = CaseTerms("sgmv/decode/bf16/llama-8b")

# Of a kernel compiled by Triton 3.9 for sm_90, shortened: a list read by an inlined function, a
# tile in four words and by cp.async, and one whose alignment was not known.
PTX = """
	.loc	1 36 0                          // kernel.py:36:0
	ld.param.b64 	%rd4, [sgmv_param_1];
	.loc	1 32 20, function_name $L__info_string0, inlined_at 1 41 13 // kernel.py:32:20
	ld.global.b32 	%r7, [%rd4];
	// begin inline asm
	.loc	1 38 14                         // kernel.py:38:14
	mov.u32 %r1, %r4;
	.loc	1 39 14                         // kernel.py:39:14
	@%p1 ld.global.L1::evict_last.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];

	// end inline asm
	// begin inline asm
	.loc	1 42 12                         // kernel.py:42:12
	cp.async.cg.shared.global [ %r9 + 0 ], [ %rd6 + 0 ], 0x10, %r10;

	// end inline asm
	// begin inline asm
	.loc	1 42 12                         // kernel.py:42:12
	cp.async.ca.shared.global [ %r9 + 0 ], [ %rd6 + 0 ], 0x4, 0x4;

	// end inline asm
	.loc	1 50 9                          // kernel.py:50:9
	ld.global.nc.b16 	%rs1, [%rd9];
	ld.global.nc.b16 	%rs2, [%rd9+2];
	ld.shared.v4.b32 	{%r1, %r2, %r3, %r4}, [%r5];
	st.global.v4.b32 [ %rd2 + 0 ], { %r5, %r6, %r7, %r8 };
	cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], [%r];
"""
TTGIR = """
    %tile = tt.load %lists : !tt.ptr<i32> loc(#loc14)
    %a = tt.load %p, %m, %z : tensor<256x!tt.ptr<bf16>, #blocked> loc(#loc15)
    %b = ttg.async_copy_global_to_local %q, %v : tensor<64x!tt.ptr<f16>, #b> -> <64xf16> loc(#loc3)
    tt.store %o, %s : tensor<256x!tt.ptr<f32>, #blocked> loc(#loc5)
#loc1 = loc("kernel.py":32:20)
#loc2 = loc("kernel.py":41:13)
#loc3 = loc("kernel.py":42:12)
#loc4 = loc("kernel.py":38:14)
#loc5 = loc("kernel.py":50:9)
#loc14 = loc(callsite(#loc1 at #loc2))
#loc15 = loc("a"(#loc4))
"""
# Of a kernel that was given 32 registers.
REPORT = """
Resource usage:
 Common:
  GLOBAL:0
 Function multiply:
  REG:32 STACK:5088 SHARED:0 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def make_binary(**changes: object) -> Binary:
    fine = Binary(
        case=TERMS.name,
        arch=90,
        num_warps=4,
        num_registers=96,
        stack_bytes=0,
        local_bytes=0,
        shared_bytes=65_536,
        scratch_bytes=0,
        loads=(Load("cp.async", "bf16", 16, 8), Load("ld", "i32", 4, 2)),
        unaligned=(),
        specialised=(),
    )
    return replace(fine, **changes)  # type: ignore[arg-type]


def test_the_order_of_memory_is_read() -> None:
    """Of a word that another process waits for, nothing else tells when it is written."""
    ptx = """
	bar.sync 	0;
	bar.sync 	0;
	@%p6 atom.global.sys.acq_rel.add.u32 %r19, [ %rd29 + 0 ], %r20;
	@%p6 st.shared::cta.b32 [ %r21 + 0 ], %r19;
	ld.global.b64 { %rd33 }, [ %rd30 + 0 ];
                @is_first st.release.sys.global.b64 [%rd31], %rd33;
	@!%p1 fence.acq_rel.gpu;
	ld.acquire.sys.global.b64 %rd13, [%rd16];
"""
    assert read_orders(ptx) == (
        "bar.sync",
        "atom.global.sys.acq_rel.add.u32",
        "st.release.sys.global.b64",
        "fence.acq_rel.gpu",
        "ld.acquire.sys.global.b64",
    )
    binary = make_binary(orders=read_orders(ptx))
    assert Binary.from_json(json.loads(json.dumps(binary.to_json()))) == binary


def test_widths_and_elements_are_read() -> None:
    """A load that is not seen is not judged; one of a list is no load of weights."""
    assert read_loads(PTX, TTGIR) == (
        Load("bulk", "", 0, 1),
        Load("cp.async", "f16", 4, 1),
        Load("cp.async", "f16", 16, 1),
        Load("ld", "", 2, 2),
        Load("ld", "bf16", 16, 1),
        Load("ld", "i32", 4, 1),
    )


@pytest.mark.parametrize(
    ("line", "width_bytes"),
    [
        ("ld.global.v2.b16 {%rs1, %rs2}, [%rd1];", 4),
        ("@!%p1 ld.global.u16 %rs1, [%rd1];", 2),
        ("ld.global.L1::evict_first.L2::cache_hint.v2.b64 {%rd1, %rd2}, [%rd3], %rd4;", 16),
        ("ld.acquire.gpu.global.b32 %r1, [%rd1];", 4),
        ("ld.global.bf16 %rs1, [%rd1];", 2),
    ],
)
def test_a_load_of_any_form_has_its_width(line: str, width_bytes: int) -> None:
    """PTX writes the type last and the lanes before it, with any modifiers between."""
    assert [load.width_bytes for load in read_loads(line, "")] == [width_bytes]


def test_a_load_of_unknown_form_is_an_error() -> None:
    """A new kind of load must not pass because nobody knows its width."""
    with pytest.raises(ValueError, match="unknown width"):
        read_loads("ld.global.tile %r1, [%rd1];", "")


def test_usage_is_read() -> None:
    """Without a device only cuobjdump knows what was spilled."""
    assert read_usage(REPORT) == Usage(num_registers=32, stack_bytes=5088, local_bytes=0)
    with pytest.raises(ValueError, match="no function"):
        read_usage("cuobjdump fatal: no such file")


def test_a_fine_binary_has_no_fault() -> None:
    """A judge that finds fault with everything is as useless as one that finds none."""
    assert find_faults(make_binary(), TERMS) == ()
    assert narrowest_bytes(make_binary()) == 16


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stack_bytes": 8}, "STACK is 8 bytes a thread, 0 are allowed"),
        ({"local_bytes": 16}, "LOCAL is 16 bytes a thread, 0 are allowed"),
        ({"shared_bytes": 232_449}, "shared memory is 232449 bytes, sm_90 has 232448"),
        ({"shared_bytes": 166_913, "arch": 80}, "shared memory is 166913 bytes, sm_80 has 166912"),
        ({"scratch_bytes": 128}, "a launch needs 128 bytes of global scratch"),
        ({"loads": (Load("ld", "bf16", 2, 8),)}, "8 ld of 2 bytes (bf16)"),
        ({"loads": (Load("ld", "", 2, 1),)}, "1 ld of 2 bytes (unknown element)"),
        ({"unaligned": ("p_hidden",)}, "p_hidden not at a multiple of 16 bytes"),
        ({"specialised": ("num_rows",)}, "the binary depends on the value of num_rows"),
    ],
)
def test_each_fault_is_found_and_named(changes: dict[str, object], fault: str) -> None:
    """Each of these a compiler lets pass; a GPU would fail, crawl or stop for a compilation."""
    assert find_faults(make_binary(**changes), TERMS) == (fault,)


def test_what_is_allowed_is_allowed_for_its_case_alone() -> None:
    """A spill with a reason passes, a byte more does not; an odd width may be loaded by halves."""
    spilling = replace(TERMS, stack_bytes=64)
    assert find_faults(make_binary(stack_bytes=64), spilling) == ()
    assert find_faults(make_binary(stack_bytes=72), spilling)
    odd = replace(TERMS, unaligned="rows of 895")
    narrow = make_binary(loads=(Load("ld", "bf16", 2, 8),), unaligned=("p_hidden",))
    assert find_faults(narrow, odd) == ()
    assert find_faults(replace(narrow, stack_bytes=8), odd)


def test_the_limits_are_reached_without_fault() -> None:
    """The last byte of shared memory may be used."""
    assert not find_faults(make_binary(shared_bytes=232_448), TERMS)
    assert not find_faults(make_binary(shared_bytes=166_912, arch=80), TERMS)


def test_an_odd_case_needs_an_even_one() -> None:
    """Else a whole kernel could be called odd, and its narrow loads would never be seen."""
    even, odd = CaseTerms("k/c/bf16/even"), CaseTerms("k/c/bf16/odd", unaligned="width 895")
    other = CaseTerms("k/c/fp16/odd", unaligned="width 895")
    assert find_lonely([even, odd]) == []
    assert find_lonely([even, odd, other]) == [other.name]


def test_the_store_forgets_what_changed(tmp_path: Path) -> None:
    """A kernel that was changed after it was judged must be judged again."""
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "kernel.py").write_text("a = 1")
    before = source_hash([kernels], versions=("3.9.0",))
    BinaryStore(tmp_path, before).put(make_binary())
    BinaryStore(tmp_path, before).put_cases([TERMS])
    assert BinaryStore(tmp_path, before).get(TERMS.name, 90) == make_binary()
    assert BinaryStore(tmp_path, before).get(TERMS.name, 80) is None
    assert BinaryStore(tmp_path, before).cases() == [TERMS]

    assert source_hash([kernels], versions=("3.6.0",)) != before
    (kernels / "kernel.py").write_text("a = 2")
    after = source_hash([kernels], versions=("3.9.0",))
    assert BinaryStore(tmp_path, after).get(TERMS.name, 90) is None
    assert BinaryStore(tmp_path, after).cases() is None
    assert source_hash([kernels / "kernel.py"], versions=("3.9.0",)) not in (before, after)
    (kernels / "kernel.py").rename(kernels / "other.py")
    assert source_hash([kernels], versions=("3.9.0",)) not in (before, after)


def test_who_does_not_compile_fails_alone(tmp_path: Path) -> None:
    """A compiler that crashes must not take with it what comes after."""
    lane = CompileLane(doomed_cases, build_dir=tmp_path, num_workers=1)
    crashed, refused = lane.run(lane.cases(), arches=(80,))
    assert crashed.binary is None
    assert crashed.faults[0].endswith("its process ended with code 3")
    assert refused.faults[0].startswith("does not compile")
    assert refused.faults[0].endswith("ValueError: no such tile")
    assert "FAILS" in format_outcome(refused)


def test_two_cases_of_a_name_are_refused(tmp_path: Path) -> None:
    """The second would stand for both, and one would never be compiled."""
    with pytest.raises(ChildFailed, match="two cases are named twin"):
        CompileLane(twins, build_dir=tmp_path).cases()


def test_the_result_says_what_failed_and_stays_json(tmp_path: Path) -> None:
    """A result that cannot be read, or that keeps no fault, is no record of the check."""
    lane = CompileLane(doomed_cases, build_dir=tmp_path)
    faulty = make_binary(stack_bytes=8)
    outcome = Outcome(TERMS, 90, faulty, find_faults(faulty, TERMS), was_known=False)
    broken = Outcome(TERMS, 80, None, ("does not compile: no",), was_known=False)
    text = format_document(make_document(lane, [outcome, broken], seconds=1.0))
    document = json.loads(text)
    assert document["num_failed"] == 2
    assert [row["arch"] for row in document["binaries"]] == [80, 90]
    assert document["binaries"][1]["loads"] == ["cp.async bf16 16x8", "ld i32 4x2"]
    assert document["binaries"][1]["faults"] == ["STACK is 8 bytes a thread, 0 are allowed"]
    assert len([line for line in text.splitlines() if TERMS.name in line]) == 2


def test_sources_that_change_on_the_way_are_noticed(tmp_path: Path) -> None:
    """A kernel saved while the check ran was kept under the hash of the one before it."""
    kernel = tmp_path / "kernel.py"
    kernel.write_text("a = 1")
    lane = CompileLane(doomed_cases, build_dir=tmp_path, sources=[kernel])
    kernel.write_text("a = 2")
    with pytest.raises(ChildFailed, match="sources have changed"):
        lane.cases()


@pytest.fixture(scope="module")
def small() -> dict[tuple[str, int], Outcome]:
    """Cases of small kernels, compiled for real; known again while neither they nor we change."""
    sources = (*SOURCES, TESTS_DIR / "compile_builders.py")
    lane = CompileLane(small_cases, build_dir=BUILD_DIR / "small", sources=sources)
    cases = lane.cases()
    # sm_90's ptxas refuses what sm_80's spills.
    spills = [terms for terms in cases if terms.name == "multiply/spills"]
    rest = [terms for terms in cases if terms not in spills]
    outcomes = [*lane.run(rest), *lane.run(spills, arches=(80,))]
    return {(outcome.terms.name, outcome.arch): outcome for outcome in outcomes}


@pytest.mark.compile
@pytest.mark.parametrize("arch", [80, 90])
def test_real_binaries_are_judged(small: dict[tuple[str, int], Outcome], arch: int) -> None:
    """The texts above are captured; Triton may have learnt to write others."""
    fine, multiply = small["load_tile/fine", arch], small["multiply/fine", arch]
    assert fine.binary is not None
    assert fine.binary.loads == (Load("ld", "bf16", 16, 1), Load("ld", "i32", 4, 1))
    assert fine.faults == ()
    assert multiply.binary is not None
    assert {(load.how, load.width_bytes) for load in multiply.binary.loads} == {("cp.async", 16)}
    assert multiply.faults == ()


@pytest.mark.compile
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("load_tile/two-bytes", "8 ld of 2 bytes (bf16)"),
        ("multiply/too-much-shared", "shared memory is"),
        ("scale_rows/specialised", "the binary depends on the value of num_rows"),
        ("scale_rows/shifted", "p_x not at a multiple of 16 bytes"),
    ],
)
def test_real_faults_are_found(
    small: dict[tuple[str, int], Outcome], name: str, fault: str, arch: int
) -> None:
    """From a kernel's source to the sentence: a break anywhere between lets every kernel pass."""
    assert any(found.startswith(fault) for found in small[name, arch].faults)


@pytest.mark.compile
def test_a_real_spill_is_found(small: dict[tuple[str, int], Outcome]) -> None:
    """Triton's own count of spills needs a device; this one must not."""
    (fault,) = small["multiply/spills", 80].faults
    assert fault.startswith("STACK is")
    assert small["load_tile/excused", 80].faults == ()
