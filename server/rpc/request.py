"""From a GenerateRequest to what the engine is told: every field checked, every default filled.

Each refusal names field, value and limit. Pure: the adapter is resolved and the text encoded
by the caller. Knows no gRPC besides the message it reads.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ...proto import lorry_pb2 as pb
from ..config import SchedulingConfig
from ..errors import InvalidRequest, RequestTooLarge
from ..seam import EngineInfo

MAX_STOP_IDS = 256
SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked request, without its adapter and its deadline."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    seed: int
    stop_ids: frozenset[int]
    ttft_s: float
    tpot_s: float


def prompt_text(request: pb.GenerateRequest) -> str | None:
    """The text to encode; None when the prompt came as token ids.

    Raises:
        InvalidRequest: there is no prompt, or an empty one.
    """
    match request.WhichOneof("prompt"):
        case "text":
            if not request.text:
                raise InvalidRequest("text is empty; a prompt has at least one token", field="text")
            return request.text
        case "token_ids":
            if not request.token_ids.ids:
                raise InvalidRequest(
                    "token_ids is empty; a prompt has at least one token", field="token_ids"
                )
            return None
        case _:
            raise InvalidRequest("the prompt is missing: give text or token_ids", field="prompt")


def check_text(text: str, *, info: EngineInfo, max_token_bytes: int) -> None:
    """Before it is encoded, which takes a second and hundreds of MiB for a few million bytes.

    Raises:
        RequestTooLarge: more bytes than the context could hold at the most a token.
    """
    size_bytes = len(text.encode())
    limit = info.max_model_len * max_token_bytes
    if size_bytes > limit:
        raise RequestTooLarge(
            f"text has {size_bytes} bytes; the context holds {info.max_model_len} tokens of at "
            f"most {max_token_bytes} bytes, so at most {limit}",
            field="text",
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


def read_wish(
    request: pb.GenerateRequest,
    prompt_ids: tuple[int, ...],
    *,
    info: EngineInfo,
    defaults: SchedulingConfig,
) -> Wish:
    """Raises:
    InvalidRequest: a field is wrong.
    RequestTooLarge: the prompt leaves no room for an answer.
    """
    max_new_tokens = _max_new_tokens(request, len(prompt_ids), info, defaults)
    _check_ids("token_ids", prompt_ids, info.vocab_size)
    return Wish(
        prompt_ids=prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=_temperature(request.sampling.temperature),
        seed=_seed(request.sampling),
        stop_ids=_stop_ids(request, info),
        ttft_s=_bound("slo.ttft_s", request.slo.ttft_s, defaults.ttft_s),
        tpot_s=_bound("slo.tpot_s", request.slo.tpot_s, defaults.tpot_s),
    )


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


def _temperature(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(
            f"sampling.temperature is {value}; it must be 0 or a finite number above 0",
            field="sampling.temperature",
        )
    return value


def _seed(sampling: pb.Sampling) -> int:
    if sampling.HasField("seed"):
        return sampling.seed
    return random.SystemRandom().getrandbits(SEED_BITS)


def _stop_ids(request: pb.GenerateRequest, info: EngineInfo) -> frozenset[int]:
    asked = tuple(request.stop_token_ids)
    if len(asked) > MAX_STOP_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(asked)} entries; at most {MAX_STOP_IDS}",
            field="stop_token_ids",
        )
    _check_ids("stop_token_ids", asked, info.vocab_size)
    return frozenset(asked if request.ignore_eos else (*asked, *info.eos_ids))


def _bound(field: str, value: float, default_s: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(
            f"{field} is {value}; it must be 0 (the default) or a finite number of seconds",
            field=field,
        )
    return value or default_s
