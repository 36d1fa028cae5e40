"""The text of one answer, token by token.

Together the pieces, `finish` included, equal `decode` of all ids, and each token costs the same
however many came before it. Three ways, by the tokenizer's decoder: bytes that are UTF-8
(`ByteStream`), words with tokens of single bytes among them (`FallbackStream`), and whatever else
the library knows (`LibraryStream`). Knows no requests; made by text.py, read by answer.py.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .token_bytes import TokenBytes

UTF8 = codecs.getincrementaldecoder("utf-8")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Ids that the library may hold back before its way is given up: it decodes all of them again
# with each that comes.
MAX_HELD_IDS = 64


class TextStream(Protocol):
    """`supposed`: whole characters that the last push added to an open run of byte tokens. They
    are the text if the answer ends here, and are given out by a later push or not at all.
    """

    supposed: str

    def push(self, ids: Sequence[int]) -> str:
        """The characters these tokens make certain; may be empty."""
        ...

    def finish(self) -> str:
        """What was kept back, replacement characters for incomplete ones."""
        ...


@dataclass(frozen=True, slots=True)
class Fallback:
    """A decoder of words and byte tokens (Llama 2, Mistral, Gemma), as its file describes it."""

    num_stripped: int  # leading spaces of the whole text that are dropped, at most


def read_fallback(decoder: Any) -> Fallback | None:
    """None: it is put together in another way."""
    if decoder is None:
        return None
    steps = json.loads(decoder.__getstate__()).get("decoders", [])
    kinds = [step["type"] for step in steps]
    if kinds not in (
        ["Replace", "ByteFallback", "Fuse"],
        ["Replace", "ByteFallback", "Fuse", "Strip"],
    ):
        return None
    if (steps[0]["pattern"], steps[0]["content"]) != ({"String": "\u2581"}, " "):
        return None
    if len(steps) == 3:
        return Fallback(0)
    strip = steps[3]
    return Fallback(strip["start"]) if (strip["content"], strip["stop"]) == (" ", 0) else None


class ByteStream:
    """Every token is bytes. At most three of them are held: the beginning of a character."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self.supposed = ""
        self._token_bytes = token_bytes
        self._decoder = UTF8("replace")

    def push(self, ids: Sequence[int]) -> str:
        read = self._token_bytes
        return self._decoder.decode(b"".join(read(token) for token in ids if read.is_shown(token)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class FallbackStream:
    """A run of byte tokens is held while it may still be text: one invalid byte turns all of them
    into replacement characters. Tokens that are not shown do not end a run.
    """

    def __init__(self, token_bytes: TokenBytes, fallback: Fallback) -> None:
        self.supposed = ""
        self._token_bytes = token_bytes
        self._to_strip = fallback.num_stripped  # of the certain text
        self._run = _Run()
        self._supposed_to_strip = 0  # of the open run's

    def push(self, ids: Sequence[int]) -> str:
        self.supposed = ""
        certain: list[str] = []
        for token in ids:
            if not self._token_bytes.is_shown(token):
                continue
            byte = self._token_bytes.fallback_byte(token)
            if byte is None:
                certain.append(self._end_run())
                certain.append(self._strip(self._token_bytes(token).decode()))
            else:
                certain.append(self._add(byte))
        return "".join(certain)

    def finish(self) -> str:
        self.supposed = ""
        return self._end_run()

    def _add(self, byte: int) -> str:
        run = self._run
        if run.num_bytes == 0:
            self._supposed_to_strip = self._to_strip
        letter = run.add(byte)
        if run.is_text:
            letter, self._supposed_to_strip = stripped(letter, self._supposed_to_strip)
            self.supposed += letter
            return ""
        self.supposed = ""
        return self._strip(run.take())

    def _end_run(self) -> str:
        text = self._run.end()
        self._run = _Run()
        self.supposed = ""
        return self._strip(text)

    def _strip(self, text: str) -> str:
        text, self._to_strip = stripped(text, self._to_strip)
        return text


def stripped(text: str, num_spaces: int) -> tuple[str, int]:
    """Without its first spaces, at most so many; how many may still be dropped after it."""
    if not text or not num_spaces:
        return text, num_spaces
    rest = text.lstrip(" ")
    num_dropped = min(len(text) - len(rest), num_spaces)
    text = text[num_dropped:]
    return text, 0 if text else num_spaces - num_dropped


class _Run:
    """Byte tokens in a row."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.is_text = True  # so far: the last character may be incomplete
        self._letters: list[str] = []
        self._decoder = UTF8("strict")
        self._num_given = 0  # replacement characters of it that were taken

    def add(self, byte: int) -> str:
        """The character it completes, if the run is text."""
        self.num_bytes += 1
        if not self.is_text:
            return ""
        try:
            letter = self._decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            self.is_text = False
            self._letters.clear()
            return ""
        self._letters.append(letter)
        return letter

    def take(self) -> str:
        """Of a run that is no text: one replacement character a byte, each once."""
        num_new, self._num_given = self.num_bytes - self._num_given, self.num_bytes
        return REPLACEMENT * num_new

    def end(self) -> str:
        if self.is_text and not self._decoder.getstate()[0]:
            return "".join(self._letters)
        return self.take()


class LibraryStream:
    """Any other decoder. Where the library finds no stable prefix in `MAX_HELD_IDS` ids, the rest
    of the text comes with `finish`; so does a run of byte tokens that nothing ends.
    """

    def __init__(self, backend: Tokenizer, token_bytes: TokenBytes) -> None:
        from tokenizers.decoders import DecodeStream

        self.supposed = ""
        self._backend = backend
        self._token_bytes = token_bytes
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._num_fed = 0
        self._num_held = 0  # fed, and without text since
        self._num_given = 0  # characters

    def push(self, ids: Sequence[int]) -> str:
        pieces: list[str] = []
        for token in ids:
            if not self._token_bytes.is_shown(token):
                continue
            self._ids.append(token)
            if self._token_bytes.fallback_byte(token) is None:
                pieces.append(self._step(self._ids[self._num_fed :]))
                self._num_fed = len(self._ids)
        text = "".join(pieces)
        self._num_given += len(text)
        return text

    def finish(self) -> str:
        whole = self._backend.decode(self._ids, skip_special_tokens=True)
        return whole[self._num_given :]

    def _step(self, ids: list[int]) -> str:
        if self._stream is None:
            return ""
        try:
            text = self._stream.step(self._backend, ids if len(ids) > 1 else ids[0]) or ""
        except Exception:  # the library raises the bare class: these ids have no stable prefix
            text, self._num_held = "", MAX_HELD_IDS
        self._num_held = 0 if text else self._num_held + 1
        if self._num_held >= MAX_HELD_IDS:
            self._stream = None
        return text
