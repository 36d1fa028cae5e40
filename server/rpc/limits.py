"""The limits of one request, gathered from where they are kept, for `GetInfo` to tell."""

from __future__ import annotations

from ...proto import lorry_pb2 as pb
from ..config import SchedulingConfig
from .chat import MAX_CHAT_MESSAGES, MAX_TEMPLATE_BYTES
from .request import MAX_STOP_CHARS, MAX_STOP_IDS, MAX_STOP_STRINGS, max_answers
from .sampling_fields import MAX_BIASES, MAX_TOP_LOGPROBS


def request_limits(config: SchedulingConfig) -> pb.RequestLimits:
    return pb.RequestLimits(
        n=max_answers(config),
        logprobs=MAX_TOP_LOGPROBS,
        stop_strings=MAX_STOP_STRINGS,
        stop_chars=MAX_STOP_CHARS,
        stop_token_ids=MAX_STOP_IDS,
        logit_bias=MAX_BIASES,
        chat_messages=MAX_CHAT_MESSAGES,
        template_bytes=MAX_TEMPLATE_BYTES,
    )
