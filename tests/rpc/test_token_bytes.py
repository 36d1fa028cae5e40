"""What tokens stand for, against the text that they make together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lorry.server.rpc.token_bytes import TokenBytes, byte_letters
from lorry.tests.rpc_builders import BOS_ID, VOCAB, make_byte_fallback, make_text


def test_the_letters_are_those_of_the_library():
    """Broken: a byte-level token shows other bytes than its decoder makes of it."""
    letters = byte_letters()
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(letters.values()) == list(range(256))
    decoder = decoders.ByteLevel()
    for letter, byte in letters.items():
        if byte < 0x80:
            assert decoder.decode([letter]) == chr(byte)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(words=st.text(max_size=30))
def test_byte_level_tokens_add_up_to_the_text(words: str):
    """Broken: log-probabilities are shown beside bytes that are not the token's."""
    text = make_text()
    first, *rest = text.encode(words)
    assert text.token_bytes(first) == b"<bos>"
    assert b"".join(map(text.token_bytes, rest)) == words.encode()


def test_byte_tokens_stand_for_one_byte_and_words_keep_their_space():
    """Broken: half a character is shown as a replacement character, or a space is lost."""
    text = make_byte_fallback()
    token = text._backend.token_to_id
    assert text.token_bytes(token("<0xC3>")) == b"\xc3"
    assert text.token_bytes(token("\u2581a")) == b" a"
    assert text.token_bytes(token("\u00e9")) == "\u00e9".encode()
    assert text.token_bytes(token("</s>")) == b"</s>"


def test_word_pieces_join_as_their_decoder_joins_them():
    """Broken: `##ing` is shown as the vocabulary spells it."""
    vocab = {"[UNK]": 0, "go": 1, "##ing": 2}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    token_bytes = TokenBytes(tokenizer)
    assert [token_bytes(token) for token in (1, 2)] == [b" go", b"ing"]


def test_an_id_without_a_token_stands_for_nothing():
    """Broken: a model whose vocabulary is padded makes logprobs fail."""
    text = make_text()
    assert text.token_bytes(VOCAB + 5) == b""
    assert text.token_bytes(BOS_ID) == b"<bos>"
