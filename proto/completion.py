"""What comes back, put together: one stream of `Generate` into one completion for each answer.

Plain data and pure functions, shared by both clients; neither waits nor connects. Imports
protobuf, not grpc. Used by transport.py and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from . import lorry_pb2 as pb
from .errors import ServerFault

REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class ColdStart:
    """How a request whose adapter was not in the pool came to its first token."""

    way: str  # wait, stream, assist
    reason: str
    predicted_s: float  # from the choice to the first token; 0: nothing was known yet
    measured_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    preemptions: int  # times the request gave way and was recomputed
    cached_tokens: int  # of the prompt, whose KV was there when the request first ran
    cold_start: ColdStart | None = None  # None: the adapter was in the pool, or there is none


@dataclass(frozen=True, slots=True)
class Timing:
    """On the server's clock."""

    queue_s: float  # receipt by the engine -> first scheduled
    load_s: float  # part of it while the adapter was on its way
    prefill_s: float  # first scheduled -> first token
    ttft_s: float  # receipt by the front end -> first token
    tpot_s: float  # (last - first) / (tokens - 1); 0 for one token


@dataclass(frozen=True, slots=True)
class RankedToken:
    """One of the most likely tokens at some place."""

    token_id: int
    token: bytes  # what it stands for; need not be whole characters
    logprob: float  # natural logarithm, of the model's own distribution

    @property
    def text(self) -> str:
        """Replacement characters where the bytes are no whole ones."""
        return self.token.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob(RankedToken):
    """The token that stands at a place of prompt or answer, and the most likely ones there."""

    top: tuple[RankedToken, ...] = ()  # likeliest first, as many as were asked for


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message brought."""

    index: int  # which of the `n` answers it belongs to
    text: str  # may be empty
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]  # one a token where asked for, else empty


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
    index: int = 0  # which of the `n` answers
    stop_string: str | None = None  # what ended it
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # one a token where asked for
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # from the prompt's second token on


@dataclass(slots=True)
class _Draft:
    """One answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    final: pb.Final | None = None


class Transcript:
    """Collects one stream of `Generate`, of `num_answers` answers."""

    def __init__(self, num_answers: int = 1) -> None:
        self._drafts = [_Draft() for _ in range(num_answers)]
        self._prompt_logprobs: list[TokenLogprob] = []

    @property
    def token_ids(self) -> list[int]:
        """Of the first answer so far."""
        return self._drafts[0].token_ids

    def add(self, response: pb.GenerateResponse) -> Piece | None:
        """What this message brought of an answer; None if it is of another kind."""
        match response.WhichOneof("part"):
            case "chunk":
                return self._add_chunk(response.chunk)
            case "final":
                self._draft(response.final.index).final = response.final
            case "prompt_logprobs":
                self._prompt_logprobs.extend(_logprobs(response.prompt_logprobs.logprobs))
            case _:
                pass  # of a newer server
        return None

    def completions(self) -> tuple[Completion, ...]:
        """The whole answers, once the stream has ended.

        Raises:
            ServerFault: the stream ended, or was left, before each had its final message.
        """
        return tuple(self._completion(draft) for draft in self._drafts)

    def _add_chunk(self, chunk: pb.Chunk) -> Piece:
        draft = self._draft(chunk.index)
        piece = Piece(chunk.index, chunk.text, tuple(chunk.token_ids), _logprobs(chunk.logprobs))
        draft.texts.append(piece.text)
        draft.token_ids.extend(piece.token_ids)
        draft.logprobs.extend(piece.logprobs)
        return piece

    def _draft(self, index: int) -> _Draft:
        if index >= len(self._drafts):
            asked = len(self._drafts)
            raise ServerFault(
                "DATA_LOSS", f"the server sent answer {index} of {asked} that were asked for"
            )
        return self._drafts[index]

    def _completion(self, draft: _Draft) -> Completion:
        final = draft.final
        if final is None:
            raise ServerFault("DATA_LOSS", "the answer has no final message: it is not whole")
        usage, timing = final.usage, final.timing
        return Completion(
            text="".join(draft.texts),
            token_ids=tuple(draft.token_ids),
            reason=REASONS.get(final.reason, "unspecified"),
            usage=_usage(usage),
            timing=Timing(
                queue_s=timing.queue_s,
                load_s=timing.load_s,
                prefill_s=timing.prefill_s,
                ttft_s=timing.ttft_s,
                tpot_s=timing.tpot_s,
            ),
            seed=final.seed,
            adapter_version=final.adapter_version,
            index=final.index,
            stop_string=final.stop_string if final.HasField("stop_string") else None,
            stop_token_id=final.stop_token_id if final.HasField("stop_token_id") else None,
            logprobs=tuple(draft.logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
        )


def _usage(usage: pb.Usage) -> Usage:
    start = usage.cold_start
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.preemptions,
        usage.cached_tokens,
        ColdStart(start.way, start.reason, start.predicted_s, start.measured_s)
        if usage.HasField("cold_start")
        else None,
    )


def plain_logprobs(entries: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """Ready for JSON, where bytes have no place: the text, and the bytes in hex."""
    return [{**_plain(entry), "top": [_plain(ranked) for ranked in entry.top]} for entry in entries]


def _plain(ranked: RankedToken) -> dict[str, object]:
    return {
        "token_id": ranked.token_id,
        "text": ranked.text,
        "token_hex": ranked.token.hex(),
        "logprob": ranked.logprob,
    }


def _logprobs(entries: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            entry.token_id,
            entry.token,
            entry.logprob,
            tuple(RankedToken(top.token_id, top.token, top.logprob) for top in entry.top),
        )
        for entry in entries
    )
