"""One case after the other: inputs made, each way built, checked, timed and dropped.

Owns the order of a case and what happens when a way fails: a row that says so, and the next way;
after one that broke the device, nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..bandwidth import copy_bytes_per_s
from .cases import Case, num_layers
from .check import Expected, WrongResult, check, make_expected
from .inputs import Inputs
from .rows import Bounds, Row, make_row
from .timing import cache_bytes, time_prepare, time_step
from .way import NamedWay, NotMeasured, Way

# Smallest steps cannot fill a cache of 50 MB with fewer; more would only cost memory and time.
MAX_LAYERS = {"cpu": 8, "cuda": 128}
# A CUDA error leaves the context broken: everything after it would fail for its reason.
FATAL = ("illegal memory access", "device-side assert", "unspecified launch failure")


class DeviceBroken(Exception):
    """A peer's kernel broke the CUDA context while it was tuned; no figure would mean anything."""


@dataclass(slots=True)
class Bench:
    """A device, its ceiling, and the ways that can run there."""

    device: torch.device
    dtype: torch.dtype
    ways: Sequence[NamedWay]
    deadline_s: float = float("inf")  # by time.perf_counter; what is not begun is left out
    peak_gb_s: float = 0.0
    cache_bytes: int = 0
    broken: str = ""  # which way broke the device: no later figure would mean anything
    left_out: dict[str, str] = field(default_factory=dict)  # case, or way at a case -> why

    def measure_ceiling(self) -> float:
        self.cache_bytes = cache_bytes(self.device)
        self.peak_gb_s = copy_bytes_per_s(self.device) / 1e9
        return self.peak_gb_s

    def run(self, cases: Sequence[Case]) -> Iterator[Row]:
        for case in cases:
            if not self._leave_out(case.name):
                yield from self._case(case)

    def _leave_out(self, name: str) -> bool:
        """Whether there is a reason not to begin it, which is kept."""
        late = time.perf_counter() > self.deadline_s
        why = self.broken or ("no time was left" if late else "")
        if why:
            self.left_out[name] = why
        return bool(why)

    def _case(self, case: Case) -> Iterator[Row]:
        layers = num_layers(
            case, self.dtype.itemsize, self.cache_bytes, MAX_LAYERS[self.device.type]
        )
        inputs = Inputs(case, num_layers=layers, dtype=self.dtype, device=self.device)
        expected = make_expected(inputs)
        for named in self.ways:
            if self._leave_out(f"{named.name} at {case.name}"):
                continue
            yield self._way(named, inputs, expected)
            if self.device.type == "cuda" and not self.broken:
                torch.cuda.empty_cache()

    def _way(self, named: NamedWay, inputs: Inputs, expected: Expected) -> Row:
        case = inputs.case
        try:
            way = named.build(inputs)
            max_error = check(way, inputs, expected)
            timed = time_step(lambda: _step(way, inputs), self.device)
            prepare_ms = time_prepare(way.prepare, self.device)
        except NotMeasured as reason:
            return Row("lora", case.name, named.name, named.peer, not_measured=str(reason))
        except WrongResult as wrong:
            return _failed(case, named, f"wrong: {wrong}")
        except Exception as error:
            # Somebody else's kernel may fail in any way; the row says how, the others go on.
            if any(text in str(error) for text in FATAL):
                self.broken = f"{named.name} at {case.name} had broken the device"
            text = (str(error).splitlines() or [""])[0][:200]
            return _failed(case, named, f"{type(error).__name__}: {text}")
        return make_row(
            case,
            named.name,
            Bounds(self.dtype.itemsize, self.peak_gb_s, self.cache_bytes),
            step_ms=timed.ms,
            prepare_ms=prepare_ms,
            num_layers=inputs.num_layers,
            how=timed.how,
            max_error=max_error,
            peer=named.peer,
            is_tuned=named.is_tuned,
        )


def _step(way: Way, inputs: Inputs) -> None:
    for layer in range(inputs.num_layers):
        for group in range(len(inputs.case.layer.groups)):
            way.add(layer, group)


def _failed(case: Case, named: NamedWay, why: str) -> Row:
    return Row("lora", case.name, named.name, named.peer, not_measured=why, failed=True)
