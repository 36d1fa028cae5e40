"""What an engine serves, as it says of itself once it is up.

Filled by the runner; the first message over the seam, and what the front end answers `GetInfo`
and checks requests with. Plain data, no torch: the front end reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...adapters.image import ImageSpec


@dataclass(frozen=True, slots=True)
class EngineInfo:
    architecture: str  # the model's class
    dtype: str  # of weights and pool
    device: str
    fingerprint: str  # of the base's weights
    max_model_len: int  # tokens of prompt and answer
    num_pages: int
    page_bytes: int
    tokens_per_page: int
    image_spec: ImageSpec
    self_proof: str  # one line: what was compared and the largest error
    eos_ids: tuple[int, ...]
    vocab_size: int
    cold_start: str = ""  # how requests may start whose adapter is not in the pool, and why
