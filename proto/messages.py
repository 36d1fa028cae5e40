"""What both clients say and hear, as pure functions: requests built, answers put together.

Nothing here waits, connects or reads a file, so the sync and the async client share all of it
and differ in their transport only. Imports protobuf, not grpc. Used by client.py and, for
`to_plain`, by the command line.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from google.protobuf.message import Message

from . import lorry_pb2 as pb
from .errors import InvalidRequest, ServerFault

REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate` and `complete`; what is left out is the server's default."""

    adapter: str  # name; empty: the base model
    max_new_tokens: int
    temperature: float  # 0: the most likely token, always
    seed: int | None  # None: the server draws one and returns it
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    ttft_s: float  # bounds asked for; 0: the server's
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    preemptions: int  # times the request gave way and was recomputed


@dataclass(frozen=True, slots=True)
class Timing:
    """On the server's clock."""

    queue_s: float  # receipt by the engine -> first scheduled
    load_s: float  # part of it while the adapter was on its way
    prefill_s: float  # first scheduled -> first token
    ttft_s: float  # receipt by the front end -> first token
    tpot_s: float  # (last - first) / (tokens - 1); 0 for one token


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    reason: str  # stop, length
    usage: Usage
    timing: Timing
    seed: int  # the one used; with the same prompt and adapter it gives these tokens again
    adapter_version: int  # 0: the base model


def generate_request(
    prompt: str | Sequence[int],
    *,
    adapter: str = "",
    max_new_tokens: int = 0,
    temperature: float = 0.0,
    seed: int | None = None,
    stop_token_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    ttft_s: float = 0.0,
    tpot_s: float = 0.0,
) -> pb.GenerateRequest:
    """`prompt` is text, or token ids of the model's own vocabulary.

    Raises:
        InvalidRequest: a number that the wire cannot carry; names the field.
    """
    request = pb.GenerateRequest(
        adapter=adapter,
        max_new_tokens=_unsigned("max_new_tokens", max_new_tokens, 32),
        sampling=pb.Sampling(temperature=temperature),
        slo=pb.Slo(ttft_s=ttft_s, tpot_s=tpot_s),
        stop_token_ids=[_unsigned("stop_token_ids", token, 32) for token in stop_token_ids],
        ignore_eos=ignore_eos,
    )
    if isinstance(prompt, str):
        request.text = _encodable(prompt)
    elif isinstance(prompt, bytes | bytearray | memoryview):
        # A sequence of numbers to Python; nobody means these as token ids.
        kind = type(prompt).__name__
        raise InvalidRequest(
            "INVALID_ARGUMENT", f"prompt is {kind}; give text (str) or token ids", "prompt"
        )
    else:
        ids = [_unsigned("token_ids", token, 32) for token in prompt]
        request.token_ids.CopyFrom(pb.TokenIds(ids=ids))
    if seed is not None:
        request.sampling.seed = _unsigned("sampling.seed", seed, 64)
    return request


class Transcript:
    """Collects one stream of `Generate` into a completion."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._texts: list[str] = []
        self._final: pb.Final | None = None

    def add(self, response: pb.GenerateResponse) -> str | None:
        """The text this message brought, maybe empty; None for the final message."""
        if response.HasField("final"):
            self._final = response.final
            return None
        self.token_ids.extend(response.chunk.token_ids)
        self._texts.append(response.chunk.text)
        return response.chunk.text

    def completion(self) -> Completion:
        """The whole answer, once the stream has ended.

        Raises:
            ServerFault: the stream ended, or was left, before its final message.
        """
        final = self._final
        if final is None:
            raise ServerFault("DATA_LOSS", "the answer has no final message: it is not whole")
        usage, timing = final.usage, final.timing
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self.token_ids),
            reason=REASONS.get(final.reason, "unspecified"),
            usage=Usage(usage.prompt_tokens, usage.completion_tokens, usage.preemptions),
            timing=Timing(
                queue_s=timing.queue_s,
                load_s=timing.load_s,
                prefill_s=timing.prefill_s,
                ttft_s=timing.ttft_s,
                tpot_s=timing.tpot_s,
            ),
            seed=final.seed,
            adapter_version=final.adapter_version,
        )


def list_request(prefix: str, page_size: int, page_token: str) -> pb.ListAdaptersRequest:
    return pb.ListAdaptersRequest(
        prefix=prefix, page_size=_unsigned("page_size", page_size, 32), page_token=page_token
    )


def to_plain(message: Message) -> dict[str, object]:
    """Fields by their names in lorry.proto, unset ones with their zero, ready for JSON.

    protobuf's own JSON form turns 64-bit numbers into strings; here numbers stay numbers.
    """
    plain: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [_plain_value(field, item) for item in value]
        else:
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_value(field: object, value: object) -> object:
    if isinstance(value, Message):
        return to_plain(value)
    if isinstance(value, bytes):
        return value.hex()
    enum = getattr(field, "enum_type", None)
    if enum is not None and value in enum.values_by_number:
        return enum.values_by_number[value].name
    return value


def _unsigned(field: str, value: int, bits: int) -> int:
    limit = (1 << bits) - 1
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise InvalidRequest(
            "INVALID_ARGUMENT", f"{field} is {value!r}; it must be an integer, 0 to {limit}", field
        ) from error
    if not 0 <= whole <= limit:
        raise InvalidRequest(
            "INVALID_ARGUMENT", f"{field} is {whole}; it must be 0 to {limit}", field
        )
    return whole


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "INVALID_ARGUMENT",
            f"text has a lone surrogate at character {error.start}, which UTF-8 cannot carry",
            "text",
        ) from error
    return text
