"""What one token stands for, in bytes.

A token need not hold whole characters, so its text alone would be a lie for many; its bytes are
not. Special tokens stand for their own names. Owns how the tokenizer's decoder is read for that;
knows no requests. Used by text.py.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# In front of a token, so that the decoder does not take it for the first of a text.
ANCHOR = "a"


class TokenBytes:
    """Looked up when first asked for; at most the vocabulary is kept."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._decoder: Any = backend.decoder
        kinds = _kinds(self._decoder)
        # Bytes and nothing else: the text is what they say in UTF-8.
        self.is_byte_level = kinds in ({"ByteLevel"}, {"Sequence", "ByteLevel"})
        self._letters = byte_letters() if "ByteLevel" in kinds else {}
        self._has_byte_tokens = "ByteFallback" in kinds
        added = backend.get_added_tokens_decoder()
        self._names = {token: added[token].content for token in added if added[token].special}
        self._known: dict[int, bytes] = {}
        self._fallback_bytes: dict[int, int] = {}
        self._shown: dict[int, bool] = {}
        if self._has_byte_tokens:
            tokens = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(0x100)}
            self._fallback_bytes = {
                token: byte for byte, token in tokens.items() if token is not None
            }

    def __call__(self, token_id: int) -> bytes:
        """Empty for an id that the model has and the tokenizer does not."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read(token_id)
        return known

    def is_shown(self, token_id: int) -> bool:
        """Whether it is part of the text: special tokens are not, nor is what has no token."""
        shown = self._shown.get(token_id)
        if shown is None:
            known = self._backend.id_to_token(token_id) is not None
            shown = self._shown[token_id] = known and token_id not in self._names
        return shown

    def fallback_byte(self, token_id: int) -> int | None:
        """Of a token that stands for a single byte; None for others."""
        return self._fallback_bytes.get(token_id)

    def _read(self, token_id: int) -> bytes:
        if (name := self._names.get(token_id)) is not None:
            return name.encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._letters:
            if all(letter in self._letters for letter in token):
                return bytes(self._letters[letter] for letter in token)
            return token.encode()  # as its decoder does with an added token
        if self._has_byte_tokens and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return self._decoded(token).encode()

    def _decoded(self, token: str) -> str:
        if self._decoder is None:
            return token
        before = self._decoder.decode([ANCHOR])
        whole = self._decoder.decode([ANCHOR, token])
        return whole[len(before) :] if whole.startswith(before) else token


def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones
    themselves, the others the letters from U+0100 on, in order (after GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in printable]
    letters.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return letters


def _kinds(decoder: Any) -> set[str]:
    """The steps of a decoder, by the names of tokenizer.json."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {step["type"] for step in (state, *state.get("decoders", ()))}
