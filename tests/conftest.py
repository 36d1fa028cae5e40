"""What every room's tests share: one thread for torch, so that tests are alike on any machine.

Random tests keep their own seeds: hypothesis is derandomized and prints the failing example, the
fuzzer names the seed of a failed life. Memory is poisoned by the builders, not by a fixture: a
pool of theirs is NaN before its first page is leased, and the engines they build poison what is
freed (`debug=True`, and `FakePages` in the same way), so there is nothing to patch in.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
