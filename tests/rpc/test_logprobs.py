"""Log-probabilities as they reach the client: token by token, the prompt's in stretches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.rpc.logprobs import MAX_ENTRIES, wire_prompt
from lorry.server.seam import Progress, PromptLogprobs, Submit, TokenLogprobs
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    make_finish,
    make_text,
    running_service,
)

BYTES_OF = make_text().token_bytes


def test_each_token_comes_with_its_own_and_its_bytes():
    """Broken: log-probabilities stand beside other tokens than theirs, or the prompt's are lost."""
    first, second = make_text().encode("é")[1:]

    async def body() -> list[pb.GenerateResponse]:
        async with (
            asyncio.timeout(30),
            running_service(engine=FakeEngine(behaviour="silent")) as service,
        ):
            stub: Any = pb_grpc.GenerationStub(service.channel)
            request = pb.GenerateRequest(text="é", logprobs=1, prompt_logprobs=0)
            call = stub.Generate(request, timeout=PATIENCE_S)
            submit = await service.engine.heard(Submit)
            assert (submit.sampling.logprobs, submit.sampling.prompt_logprobs) == (1, 0)
            number = submit.request_id
            service.engine.say(
                PromptLogprobs(number, 1, (TokenLogprobs(first, -0.5),)),
                PromptLogprobs(number, 2, (TokenLogprobs(second, -0.25),)),
                Progress(
                    number,
                    (first, second),
                    (
                        TokenLogprobs(first, -1.0, ((second, -0.75),)),
                        TokenLogprobs(second, -2.0, ((second, -2.0),)),
                    ),
                ),
                make_finish(submit, 2),
            )
            return [part async for part in call]

    *prompt, chunk, _ = asyncio.run(body())
    told = [
        (part.prompt_logprobs.first_position, entry.token_id, entry.token, entry.logprob)
        for part in prompt
        for entry in part.prompt_logprobs.logprobs
    ]
    assert told == [(1, first, b"\xc3", -0.5), (2, second, b"\xa9", -0.25)]
    assert chunk.chunk.text == "é"
    answer = chunk.chunk.logprobs
    assert [(entry.token_id, entry.token, entry.logprob) for entry in answer] == [
        (first, b"\xc3", -1.0),
        (second, b"\xa9", -2.0),
    ]
    assert [(top.token_id, top.token, top.logprob) for top in answer[0].top] == [
        (second, b"\xa9", -0.75)
    ]


@pytest.mark.parametrize("count", [0, 1, MAX_ENTRIES, 2 * MAX_ENTRIES + 1])
def test_a_long_stretch_is_cut_and_keeps_its_places(count: int):
    """Broken: a long prompt makes a message no client takes, or its places shift at the cut."""
    entries = tuple(TokenLogprobs(token % 250, -float(token)) for token in range(count))
    parts = [part.prompt_logprobs for part in wire_prompt(PromptLogprobs(1, 7, entries), BYTES_OF)]
    assert all(len(part.logprobs) <= MAX_ENTRIES for part in parts)
    placed = {
        part.first_position + offset: entry.logprob
        for part in parts
        for offset, entry in enumerate(part.logprobs)
    }
    assert placed == {7 + place: entry.logprob for place, entry in enumerate(entries)}
