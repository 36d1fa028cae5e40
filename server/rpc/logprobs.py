"""Log-probabilities as the engine tells them, put on the wire.

Adds the bytes of each token, and cuts what is said of a long prompt into messages of a bounded
size. Used by answer.py and generation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...proto import lorry_pb2 as pb
from ..seam import PromptLogprobs, TokenLogprobs

# With 20 pairs each a message has some 50 KiB, and the event loop is held for about 3 ms.
MAX_ENTRIES = 128

BytesOf = Callable[[int], bytes]


def wire_logprobs(entries: Sequence[TokenLogprobs], bytes_of: BytesOf) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            token=bytes_of(entry.token_id),
            logprob=entry.logprob,
            top=[
                pb.RankedToken(token_id=token, token=bytes_of(token), logprob=logprob)
                for token, logprob in entry.top
            ],
        )
        for entry in entries
    ]


def wire_prompt(event: PromptLogprobs, bytes_of: BytesOf) -> Iterator[pb.GenerateResponse]:
    for begin in range(0, len(event.logprobs), MAX_ENTRIES):
        part = pb.PromptLogprobs(
            first_position=event.first_position + begin,
            logprobs=wire_logprobs(event.logprobs[begin : begin + MAX_ENTRIES], bytes_of),
        )
        yield pb.GenerateResponse(prompt_logprobs=part)
