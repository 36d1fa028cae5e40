"""What the fuzzer's judge of log-probabilities lets pass."""

from __future__ import annotations

import math

import pytest

from lorry.bench.fuzz_wishes import wrong_records
from lorry.server.scheduling.sampling import TokenLogprobs

RIGHT_V = [-1.0, -2.0, -math.inf]


@pytest.mark.parametrize(
    ("record", "is_right"),
    [
        (TokenLogprobs(0, -1.0, ((0, -1.0),)), True),
        (TokenLogprobs(2, -math.inf, ((0, -1.0),)), True),
        (TokenLogprobs(0, -1.1, ((0, -1.0),)), False),
        (TokenLogprobs(0, math.nan, ((0, -1.0),)), False),
        (TokenLogprobs(0, -1.0, ((0, math.nan),)), False),
        (TokenLogprobs(0, -math.inf, ((0, -1.0),)), False),
        (TokenLogprobs(0, -1.0, ((1, -2.0),)), False),  # not the likeliest
    ],
)
def test_a_record_is_right_or_named(record: TokenLogprobs, is_right: bool) -> None:
    """NaN is no further than anything from anything: an engine that told it would have passed."""
    assert (wrong_records([record], [RIGHT_V], num_top=1) == []) is is_right
