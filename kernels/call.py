"""One launch of a Triton kernel, as a value: built by pure functions, run or only compiled.

Owns nothing but the record. An operator's `launch.py` builds calls from tensors; its backend runs
them, and the compile check builds the same calls from tensors without memory (`device="meta"`) and
compiles them for chips that are not there: what is judged is the binary that would be launched.
Knows no operator.

Triton has a binary for each set of: constexprs and options; the dtype of each tensor and whether it
begins at a multiple of 16 bytes; of each integer that is not in `do_not_specialize`, whether it is
1 or a multiple of 16. torch's allocations begin at such multiples, so only a view that begins
inside one may not, and a view of a meta tensor keeps its offset. The compile check refuses open
integers, and views that begin elsewhere unless their case says why: no step meets a new binary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A product followed by a sum is one rounding (fused), on every version of Triton alike: 3.9 warns
# where this is not said, and 3.10 will change what silence means.
FP_FUSION = True


@dataclass(frozen=True, slots=True)
class KernelCall:
    """See the module. `kernel[grid](*args, **options)`."""

    kernel: Any  # triton.jit's
    grid: tuple[int, ...]
    args: tuple[Any, ...]  # tensors and integers, in the kernel's order
    # The kernel's constexprs by name, and num_warps, num_stages.
    options: Mapping[str, Any]

    def run(self) -> None:
        """Launch it; returns at once on a GPU."""
        self.kernel[self.grid](*self.args, enable_fp_fusion=FP_FUSION, **self.options)

    def compile(self) -> Any:
        """Compile it for the active driver's target; nothing runs. Returns Triton's record."""
        return self.kernel.warmup(
            *self.args, grid=self.grid, enable_fp_fusion=FP_FUSION, **self.options
        )
