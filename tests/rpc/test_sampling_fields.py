"""Each field of sampling at its limits: taken as it is, or refused by name, value and limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.server.config import SchedulingConfig
from lorry.server.errors import InvalidRequest
from lorry.server.rpc.request import MAX_STOP_CHARS, MAX_STOP_STRINGS, Terms, read_terms
from lorry.server.rpc.sampling_fields import MAX_BIASES, MAX_TOP_LOGPROBS
from lorry.server.seam import SamplingParams
from lorry.tests.rpc_builders import VOCAB, make_info

NAN, INF = math.nan, math.inf


def read(**fields: Any) -> Terms:
    """Sampling's fields by their names, the request's own with `request_` in front."""
    own = {name[8:]: value for name, value in fields.items() if name.startswith("request_")}
    sampling = {name: value for name, value in fields.items() if not name.startswith("request_")}
    request = pb.GenerateRequest(text="a", sampling=pb.Sampling(**sampling), **own)
    return read_terms(request, info=make_info(), defaults=SchedulingConfig())


def test_unset_fields_change_nothing():
    """Broken: a request that says nothing of sampling is sampled otherwise than greedily."""
    assert read(seed=3).sampling == SamplingParams(seed=3)
    assert read(seed=3, request_n=2).stops is None


def test_every_field_reaches_its_own_place():
    """Broken: two fields are crossed, or one is dropped on its way to the sampler."""
    wish = read(
        temperature=0.5,
        seed=9,
        top_k=5,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.75,
        frequency_penalty=0.375,
        logit_bias={7: -2.5, 3: 1.5},
        request_logprobs=2,
        request_prompt_logprobs=0,
        request_stop=["x"],
        request_include_stop=True,
    )
    assert wish.sampling == SamplingParams(
        temperature=0.5,
        seed=9,
        top_k=5,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.75,
        frequency_penalty=0.375,
        logit_bias=((3, 1.5), (7, -2.5)),
        logprobs=2,
        prompt_logprobs=0,
    )
    assert wish.stops is not None
    assert wish.stops.include


AT_THE_LIMIT: list[dict[str, Any]] = [
    {"temperature": 1e-6},
    {"top_k": 2**32 - 1},
    {"top_p": 1e-6},
    {"top_p": 1.0},
    {"min_p": 1.0},
    {"repetition_penalty": 0.1},
    {"repetition_penalty": 10.0},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"logit_bias": {VOCAB - 1: 100.0, 0: -100.0}},
    {"request_logprobs": MAX_TOP_LOGPROBS},
    {"request_stop": ["x" * MAX_STOP_CHARS] * MAX_STOP_STRINGS},
]


@pytest.mark.parametrize("fields", AT_THE_LIMIT, ids=str)
def test_the_limits_themselves_are_allowed(fields: dict[str, Any]):
    """Broken: what the refusal of a larger value offers is refused as well."""
    read(**fields)


def test_more_than_all_tokens_is_all_of_them():
    """Broken: top_k beyond the vocabulary, which transformers takes, breaks the sampler."""
    assert read(top_k=2**32 - 1).sampling.top_k == VOCAB


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sampling.temperature", {"temperature": 9e-7}, "9.53674e-07"),
    ("sampling.temperature", {"temperature": INF}, "inf"),
    ("sampling.top_p", {"top_p": 0.0}, "over 0"),
    ("sampling.top_p", {"top_p": 1.5}, "1.5"),
    ("sampling.top_p", {"top_p": NAN}, "nan"),
    ("sampling.min_p", {"min_p": -0.5}, "-0.5"),
    ("sampling.min_p", {"min_p": 1.25}, "0 to 1"),
    ("sampling.min_p", {"min_p": NAN}, "nan"),
    ("sampling.repetition_penalty", {"repetition_penalty": 0.0}, "0.1 to 10"),
    ("sampling.repetition_penalty", {"repetition_penalty": INF}, "inf"),
    ("sampling.presence_penalty", {"presence_penalty": 2.5}, "-2 to 2"),
    ("sampling.presence_penalty", {"presence_penalty": NAN}, "nan"),
    ("sampling.frequency_penalty", {"frequency_penalty": -2.5}, "-2.5"),
    (f"sampling.logit_bias[{VOCAB}]", {"logit_bias": {VOCAB: 1.0}}, str(VOCAB - 1)),
    ("sampling.logit_bias[3]", {"logit_bias": {3: 101.0}}, "-100 to 100"),
    ("sampling.logit_bias[3]", {"logit_bias": {3: NAN}}, "nan"),
    (
        "sampling.logit_bias",
        {"logit_bias": dict.fromkeys(range(MAX_BIASES + 1), 1.0)},
        str(MAX_BIASES),
    ),
    ("logprobs", {"request_logprobs": MAX_TOP_LOGPROBS + 1}, str(MAX_TOP_LOGPROBS)),
    ("prompt_logprobs", {"request_prompt_logprobs": 99}, "99"),
    ("stop[1]", {"request_stop": ["x", ""]}, "0 characters"),
    ("stop[0]", {"request_stop": ["x" * (MAX_STOP_CHARS + 1)]}, str(MAX_STOP_CHARS)),
    ("stop", {"request_stop": ["x"] * (MAX_STOP_STRINGS + 1)}, str(MAX_STOP_STRINGS)),
]


@pytest.mark.parametrize(
    ("field", "fields", "word"), BAD, ids=[f"{case[0]}-{case[2]}" for case in BAD]
)
def test_each_bad_value_is_named_with_its_limit(field: str, fields: dict[str, Any], word: str):
    """Broken: a value no sampler can obey runs, or its refusal does not say what would do."""
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == field
    assert word in caught.value.message
