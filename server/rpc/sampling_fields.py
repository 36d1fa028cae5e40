"""What a request says about sampling, checked field by field.

Each refusal names field, value and limit; what is not a number is refused. Owns the limits; the
meaning of each field is server/scheduling/sampling.py's. Called by request.py.
"""

from __future__ import annotations

import math
import random

from ...proto import lorry_pb2 as pb
from ..errors import InvalidRequest
from ..seam import SamplingParams

SEED_BITS = 64
# Below it float32 knows no difference from greedy (0), which is what is meant.
MIN_TEMPERATURE = 2.0**-20
# What OpenAI's API allows: beyond, a single seen token is as good as forbidden or certain.
MAX_PENALTY = 2.0
# A factor on logits: beyond these the penalty is all that is left of the model.
MIN_REPETITION, MAX_REPETITION = 0.1, 10.0
# Added to logits: 100 decides any choice.
MAX_BIAS = 100.0
# Each row of a batch carries its own.
MAX_BIASES = 1024
# As OpenAI's API. A prompt of 100,000 tokens then has 2 million pairs.
MAX_TOP_LOGPROBS = 20


def read_sampling(request: pb.GenerateRequest, *, vocab_size: int) -> SamplingParams:
    """Raises:
    InvalidRequest: a field is wrong.
    """
    sampling = request.sampling
    return SamplingParams(
        temperature=_temperature(sampling.temperature),
        seed=_seed(sampling),
        # More than there are is all, as in transformers.
        top_k=min(sampling.top_k, vocab_size),
        top_p=_top_p(sampling),
        min_p=_within("sampling.min_p", sampling.min_p, 0.0, 1.0),
        repetition_penalty=_within(
            "sampling.repetition_penalty",
            sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            MIN_REPETITION,
            MAX_REPETITION,
        ),
        presence_penalty=_within(
            "sampling.presence_penalty", sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY
        ),
        frequency_penalty=_within(
            "sampling.frequency_penalty", sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY
        ),
        logit_bias=_logit_bias(sampling, vocab_size),
        logprobs=_num_logprobs(request, "logprobs"),
        prompt_logprobs=_num_logprobs(request, "prompt_logprobs"),
    )


def _temperature(value: float) -> float:
    if value != 0 and not MIN_TEMPERATURE <= value < math.inf:
        raise InvalidRequest(
            f"sampling.temperature is {value:g}; it must be 0 (greedy) or a finite number from "
            f"{MIN_TEMPERATURE:g}",
            field="sampling.temperature",
        )
    return value


def _seed(sampling: pb.Sampling) -> int:
    if sampling.HasField("seed"):
        return sampling.seed
    return random.SystemRandom().getrandbits(SEED_BITS)


def _top_p(sampling: pb.Sampling) -> float:
    value = sampling.top_p if sampling.HasField("top_p") else 1.0
    if not 0 < value <= 1:
        raise InvalidRequest(
            f"sampling.top_p is {value:g}; it must be over 0 and at most 1", field="sampling.top_p"
        )
    return value


def _logit_bias(sampling: pb.Sampling, vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = sampling.logit_bias
    if len(biases) > MAX_BIASES:
        raise InvalidRequest(
            f"sampling.logit_bias has {len(biases)} entries; at most {MAX_BIASES}",
            field="sampling.logit_bias",
        )
    for token, bias in biases.items():
        field = f"sampling.logit_bias[{token}]"
        if token >= vocab_size:
            raise InvalidRequest(
                f"{field} is of no token; the vocabulary ends at {vocab_size - 1}", field=field
            )
        _within(field, bias, -MAX_BIAS, MAX_BIAS)
    return tuple(sorted(biases.items()))


def _num_logprobs(request: pb.GenerateRequest, field: str) -> int:
    """-1: none at all."""
    if not request.HasField(field):
        return -1
    count: int = getattr(request, field)
    if count > MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"{field} is {count}; at most {MAX_TOP_LOGPROBS} beside each token", field=field
        )
    return count


def _within(field: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # what is no number is within nothing
        raise InvalidRequest(f"{field} is {value:g}; it must be {low:g} to {high:g}", field=field)
    return value
