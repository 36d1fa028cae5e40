"""From a GenerateRequest to what the engine is told: every field checked, every default filled.

Each refusal names field, value and limit. Pure: the adapter is resolved by generation.py, the
prompt encoded by prompt.py; what `sampling` says is checked in sampling_fields.py. Knows no gRPC
besides the message it reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...proto import lorry_pb2 as pb
from ..config import SchedulingConfig
from ..errors import InvalidRequest, RequestTooLarge
from ..seam import EngineInfo, SamplingParams
from .sampling_fields import read_sampling
from .stops import StopStrings

MAX_STOP_IDS = 256
# The automaton of all of them is built on the event loop: at these limits in 3 ms.
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
# Each answer is a request of its own to the engine: one call may not fill the queue.
MAX_ANSWERS = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """What a checked request says besides its prompt, its adapter and its deadline."""

    num_answers: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    stops: StopStrings | None
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked request, without its adapter and its deadline."""

    terms: Terms
    prompt_ids: tuple[int, ...]
    max_new_tokens: int


def max_answers(defaults: SchedulingConfig) -> int:
    """All answers of a call come to the queue at once: more than it holds would never fit."""
    return min(MAX_ANSWERS, defaults.max_waiting)


def check_bytes(field: str, size_bytes: int, *, info: EngineInfo, max_token_bytes: int) -> None:
    """Before a text is encoded, which takes a second and hundreds of MiB for a few million bytes.

    Raises:
        RequestTooLarge: more bytes than the context could hold at the most a token.
    """
    limit = info.max_model_len * max_token_bytes
    if size_bytes > limit:
        raise RequestTooLarge(
            f"{field} has {size_bytes} bytes; the context holds {info.max_model_len} tokens of at "
            f"most {max_token_bytes} bytes, so at most {limit}",
            field=field,
        )


def check_room(num_prompt_tokens: int, info: EngineInfo) -> int:
    """How many tokens are left for the answer; asked before millions of ids become objects.

    Raises:
        RequestTooLarge: none.
    """
    room = info.max_model_len - num_prompt_tokens
    if room < 1:
        raise RequestTooLarge(
            f"the prompt has {num_prompt_tokens} tokens; the context holds "
            f"{info.max_model_len} and the answer needs at least 1 of them",
            field="prompt",
        )
    return room


def read_terms(
    request: pb.GenerateRequest, *, info: EngineInfo, defaults: SchedulingConfig
) -> Terms:
    """First: a request that is refused for these costs no encoding.

    Raises:
        InvalidRequest: a field is wrong.
    """
    most = info.max_model_len - 1
    if request.max_new_tokens > most:
        raise InvalidRequest(
            f"max_new_tokens is {request.max_new_tokens}; the context holds {info.max_model_len} "
            f"tokens and the prompt takes at least 1, so at most {most}",
            field="max_new_tokens",
        )
    return Terms(
        num_answers=_num_answers(request, max_answers(defaults)),
        sampling=read_sampling(request, vocab_size=info.vocab_size),
        stop_ids=_stop_ids(request, info),
        stops=_stops(request),
        ttft_s=_bound("slo.ttft_s", request.slo.ttft_s, defaults.ttft_s),
        tpot_s=_bound("slo.tpot_s", request.slo.tpot_s, defaults.tpot_s),
    )


def complete(
    terms: Terms,
    request: pb.GenerateRequest,
    prompt_ids: tuple[int, ...],
    *,
    info: EngineInfo,
    defaults: SchedulingConfig,
) -> Wish:
    """With the prompt.

    Raises:
        InvalidRequest: the prompt is wrong, or leaves less room than was asked for.
        RequestTooLarge: the prompt leaves no room for an answer.
    """
    max_new_tokens = _max_new_tokens(request, len(prompt_ids), info, defaults)
    _check_ids("token_ids", prompt_ids, info.vocab_size)
    return Wish(terms, prompt_ids, max_new_tokens)


def _check_ids(field: str, ids: tuple[int, ...], vocab_size: int) -> None:
    for position, token in enumerate(ids):
        if token >= vocab_size:
            raise InvalidRequest(
                f"{field}[{position}] is {token}; the vocabulary ends at {vocab_size - 1}",
                field=field,
            )


def _max_new_tokens(
    request: pb.GenerateRequest,
    num_prompt_tokens: int,
    info: EngineInfo,
    defaults: SchedulingConfig,
) -> int:
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens; it needs at least one", field="prompt")
    room = check_room(num_prompt_tokens, info)
    asked = request.max_new_tokens
    if asked > room:
        raise InvalidRequest(
            f"max_new_tokens is {asked}; the context holds {info.max_model_len} tokens and the "
            f"prompt takes {num_prompt_tokens}, so at most {room}",
            field="max_new_tokens",
        )
    return asked or min(defaults.max_new_tokens, room)


def _num_answers(request: pb.GenerateRequest, limit: int) -> int:
    if request.n > limit:
        raise InvalidRequest(f"n is {request.n}; at most {limit} answers a call", field="n")
    return request.n or 1


def _stop_ids(request: pb.GenerateRequest, info: EngineInfo) -> frozenset[int]:
    if len(request.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(request.stop_token_ids)} entries; at most {MAX_STOP_IDS}",
            field="stop_token_ids",
        )
    asked = tuple(request.stop_token_ids)
    _check_ids("stop_token_ids", asked, info.vocab_size)
    return frozenset(asked if request.ignore_eos else (*asked, *info.eos_ids))


def _stops(request: pb.GenerateRequest) -> StopStrings | None:
    if not request.stop:
        return None
    if len(request.stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop has {len(request.stop)} entries; at most {MAX_STOP_STRINGS}", field="stop"
        )
    for place, stop in enumerate(request.stop):
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise InvalidRequest(
                f"stop[{place}] has {len(stop)} characters; it must have 1 to {MAX_STOP_CHARS}",
                field=f"stop[{place}]",
            )
    return StopStrings(request.stop, include=request.include_stop)


def _bound(field: str, value: float, default_s: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(
            f"{field} is {value}; it must be 0 (the default) or a finite number of seconds",
            field=field,
        )
    return value or default_s
