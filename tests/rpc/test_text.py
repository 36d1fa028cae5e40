"""Streamed text against decoding everything at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from tokenizers.decoders import DecodeStream

from lorry.server.rpc.text import Text, load_text
from lorry.server.rpc.text_stream import MAX_HELD_IDS
from lorry.tests.builders import make_tokenizer
from lorry.tests.rpc_builders import BOS_ID, VOCAB, make_byte_fallback, make_text

BYTE_LEVEL = make_text()


BYTE_FALLBACK = make_byte_fallback()
UNSTRIPPED = make_byte_fallback(num_stripped=0)
OTHER = make_byte_fallback(
    decoder=decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
)


def streamed(text: Text, pieces: list[list[int]]) -> list[str]:
    stream = text.stream()
    return [*(stream.push(piece) for piece in pieces), stream.finish()]


PIECES = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces=PIECES)
def test_any_tokens_stream_to_their_decoded_text(pieces: list[list[int]]):
    """Broken: a model's invalid bytes make streamed text differ from the whole answer's."""
    ids = [token for piece in pieces for token in piece]
    for text in (BYTE_LEVEL, BYTE_FALLBACK, UNSTRIPPED, OTHER):
        assert "".join(streamed(text, pieces)) == text.decode(ids)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(words=st.text(max_size=20).filter(lambda words: "\N{REPLACEMENT CHARACTER}" not in words))
def test_no_chunk_holds_half_a_character(words: str):
    """Broken: a client shows replacement characters while an emoji is on its way."""
    ids = BYTE_LEVEL.encode(words)
    assert ids[0] == BOS_ID
    chunks = streamed(BYTE_LEVEL, [[token] for token in ids])
    assert "".join(chunks) == words
    assert all("\N{REPLACEMENT CHARACTER}" not in chunk for chunk in chunks)


def test_a_saved_tokenizer_encodes_as_transformers_does(tmp_path):
    """Broken: the server's prompt tokens differ from those that PEFT's user sees."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = load_text(str(tmp_path))
    for words in ("abc", "2:abc>", "naïve 😀", "<eos>x"):
        assert list(text.encode(words)) == tokenizer(words)["input_ids"]


class CountedStream:
    """The library's stream, and how many ids it decodes: with each that comes, all it holds."""

    num_decoded = 0

    def __init__(self, skip_special_tokens: bool) -> None:
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._num_held = 0

    def step(self, backend: Any, ids: Any) -> str | None:
        self._num_held += len(ids) if isinstance(ids, list) else 1
        CountedStream.num_decoded += self._num_held
        text = self._stream.step(backend, ids)
        if text:
            self._num_held = 0
        return text


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (BYTE_LEVEL, "\u0122"),  # the byte 0x80 in such a vocabulary
        (BYTE_LEVEL, "<eos>"),
        (BYTE_FALLBACK, "<0x80>"),
        (BYTE_FALLBACK, "\N{REPLACEMENT CHARACTER}"),
        (OTHER, "\N{REPLACEMENT CHARACTER}"),
        (OTHER, "</s>"),
    ],
)
def test_each_token_costs_the_same_however_many_came_before(
    monkeypatch: pytest.MonkeyPatch, text: Text, token: str
):
    """Broken: one client's endless half characters hold the event loop for everybody."""
    monkeypatch.setattr("tokenizers.decoders.DecodeStream", CountedStream)
    CountedStream.num_decoded = 0
    ids = [text._backend.token_to_id(token)] * 1000
    assert "".join(streamed(text, [[token] for token in ids])) == text.decode(ids)
    assert CountedStream.num_decoded <= MAX_HELD_IDS * len(ids)


def test_what_is_certain_of_wrong_bytes_comes_at_once():
    """Broken: an answer of broken characters is silent until its end."""
    byte = BYTE_FALLBACK._backend.token_to_id("<0x80>")
    assert streamed(BYTE_FALLBACK, [[byte], [byte]]) == ["\N{REPLACEMENT CHARACTER}"] * 2 + [""]
    half = BYTE_LEVEL._backend.token_to_id("\u0122")
    assert streamed(BYTE_LEVEL, [[half], [half]]) == ["\N{REPLACEMENT CHARACTER}"] * 2 + [""]
