"""What `make gpu` runs, in this order: whether the numbers are right, then how fast they come.

Owns the list of parts, each a command of its own with a time budget, and what a part's result
must say beyond its exit code: a test that was skipped proves nothing, nor does a demo in which no
adapter had to go. Does not run anything (run.py does).
"""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..server_process import lorry_command

# All parts together, on one H200. Each has its own share, and what those before it left over.
BUDGET_S = 477.0
# Architectures that take the attention kernels through all they can do, and a fused projection.
CASES = ("llama", "qwen2", "gemma2", "gpt_oss", "phi3", "gpt2")
TEST_WORKERS = 6
# Tests that a GPU may skip (as the XML names them), each with the reason; there is none.
MAY_SKIP: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    shows: str  # a few words for the table
    command: tuple[str, ...]
    budget_s: float  # kept for it, however long those before it take
    result: Path  # the file it writes: JSON, or the tests' XML
    proves: bool = False  # whether its failure makes the whole run fail
    # Why a run that ended with 0 is a failure all the same; empty: it is none.
    complain: Callable[[Mapping[str, Any]], str] = lambda document: ""


def gpu_parts(folder: Path) -> list[Part]:
    """`folder` takes the files that the parts write."""
    return [*_proofs(folder), *_benches(folder)]


def _proofs(folder: Path) -> list[Part]:
    return [
        _tests(
            "kernels",
            "kernels against their references in fp32, fp16, bf16",
            folder,
            ("kernels", "bench/test_bandwidth.py"),
            106,
        ),
        _tests(
            "execution",
            "runner, graphs and both loops on the device",
            folder,
            ("execution", "server/test_overlap_real.py", "adapters/test_host_tier.py"),
            60,
        ),
        Part(
            "peft",
            f"{len(CASES)} architectures against PEFT: fp32 tokens, 16-bit logits",
            _module(
                "lorry.bench.exactness",
                *("--device", "cuda", "--jobs", str(len(CASES))),
                *(flag for case in CASES for flag in ("--only", case)),
                *("--result", str(folder / "peft.json")),
            ),
            68,
            folder / "peft.json",
            proves=True,
        ),
        Part(
            "demo",
            "64 requests over gRPC, adapters evicted, every token PEFT's",
            _bench("demo", folder / "demo.json"),
            45,
            folder / "demo.json",
            proves=True,
            complain=complain_of_demo,
        ),
        Part(
            "handover",
            "rows to helper processes and answers back, against fp32, and how long",
            _module("lorry.bench.handover", "--result", str(folder / "handover.json")),
            8,
            folder / "handover.json",
            proves=True,
        ),
    ]


def _benches(folder: Path) -> list[Part]:
    """Those with promised figures first: the last one may be left without time."""
    return [
        Part(
            "kernel-bench",
            "LoRA kernels beside their peers'",
            _bench("kernels", folder / "kernel-bench.json", "--quick", "--minutes", "1"),
            70,
            folder / "kernel-bench.json",
        ),
        Part(
            "step",
            "a decode step of Llama-3.1-8B's shape beside its floor",
            _bench("step", folder / "step.json"),
            90,
            folder / "step.json",
        ),
        Part(
            "throughput",
            "workload W beside transformers and PEFT",
            _bench("throughput", folder / "throughput.json", "--rounds", "1", "--no-split"),
            20,
            folder / "throughput.json",
        ),
        # Four servers have to start: it lives on what the parts before it left over.
        Part(
            "coldstart",
            "cold adapters over the device's own link: wait, auto, and all cached",
            _bench(
                "coldstart",
                folder / "coldstart.json",
                *("--quick", "--labels", "cached,wait,auto"),
            ),
            10,
            folder / "coldstart.json",
        ),
    ]


def _tests(name: str, shows: str, folder: Path, places: Sequence[str], budget_s: float) -> Part:
    """The tests that need a GPU, of these rooms or files."""
    result = folder / f"{name}.xml"
    # Another version's warning is no error there, and nothing is kept from run to run.
    flags = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={result}"]
    # Compiling is most of the kernels' time; the engine's tests look at the device's memory.
    if name == "kernels" and importlib.util.find_spec("xdist") is not None:
        flags += ["-n", str(TEST_WORKERS)]
    return Part(
        name,
        shows,
        _module("pytest", *flags, *(f"tests/{place}" for place in places)),
        budget_s,
        result,
        proves=True,
        complain=complain_of_tests,
    )


def _module(name: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", name, *args)


def _bench(name: str, result: Path, *args: str) -> tuple[str, ...]:
    return tuple(lorry_command("bench", name, "--device", "cuda", "--result", str(result), *args))


def complain_of_demo(document: Mapping[str, Any]) -> str:
    return "" if document.get("adapter_evictions") else "no adapter was evicted"


def complain_of_tests(document: Mapping[str, Any]) -> str:
    if not document.get("passed"):
        return "no test was run"
    skips = [name for name in document.get("skips", ()) if name not in MAY_SKIP]
    return f"{len(skips)} tests were skipped, {skips[0]} first" if skips else ""


def read_tests(path: Path) -> dict[str, Any]:
    """Counts from the XML that pytest writes, and who was skipped."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    root = ET.parse(path).getroot()
    for suite in root.iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    bad = counts["failures"] + counts["errors"] + counts["skipped"]
    skips = [
        f"{case.get('classname', '')}::{case.get('name', '')}"
        for case in root.iter("testcase")
        if case.find("skipped") is not None
    ]
    return {**counts, "passed": counts["tests"] - bad, "skips": skips}
