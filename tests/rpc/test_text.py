"""Streamed text against decoding everything at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lorry.server.rpc.text import Text, load_text
from lorry.tests.builders import make_tokenizer
from lorry.tests.rpc_builders import BOS_ID, VOCAB, make_text

BYTE_LEVEL = make_text()


def make_byte_fallback() -> Text:
    """As Llama 2's: words, and `<0x..>` tokens whose runs decode as a whole or not at all."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "a", "b", "\u2581a", "\u2581b", "\u00e9"]
    vocab = {word: idx for idx, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Text(tokenizer)


BYTE_FALLBACK = make_byte_fallback()


def streamed(text: Text, pieces: list[list[int]]) -> list[str]:
    stream = text.stream()
    return [*(stream.push(piece) for piece in pieces), stream.finish()]


PIECES = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces=PIECES)
def test_any_tokens_stream_to_their_decoded_text(pieces: list[list[int]]):
    """Broken: a model's invalid bytes make streamed text differ from the whole answer's."""
    ids = [token for piece in pieces for token in piece]
    for text in (BYTE_LEVEL, BYTE_FALLBACK):
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
