"""Text to tokens and back, one piece at a time.

Owns the model's tokenizer: local files only, no code of the model's own. `encode` adds the
special tokens that the tokenizer adds; `encode_aside` does so without the interpreter's lock;
`TextStream` turns the tokens of one answer into whole characters as they arrive. Knows no
requests; the front end calls it, on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, ModelRefused

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Text:
    """`backend` is the tokenizers-library object; it is never changed after this."""

    def __init__(self, backend: Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        # Tokens of single bytes (`<0x0A>`): a run of them becomes characters only as a whole,
        # and a special token, being skipped, does not end the run.
        bytes_ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        open_ids = {token for token in bytes_ids if token is not None}
        if open_ids:
            added = backend.get_added_tokens_decoder()
            open_ids |= {token for token, meaning in added.items() if meaning.special}
        self._open_ids = frozenset(open_ids)
        self.max_token_bytes = _max_token_bytes(backend)  # of text that one token can stand for

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text).ids)

    def encode_aside(self, text: str) -> Encoding:
        """As `encode`, for a thread beside the loop: only the library's calls for batches let
        other threads run meanwhile. Its length is known before its ids are made into objects.
        """
        return self._backend.encode_batch_fast([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        return TextStream(self._backend, self._open_ids)


class TextStream:
    """Pieces of one answer; together, `finish` included, they equal `decode` of all its ids.

    What cannot be told yet is kept back: an incomplete character, and a run of byte tokens
    until another token ends it, because one invalid byte turns its whole run into
    replacement characters.
    """

    def __init__(self, backend: Tokenizer, open_ids: frozenset[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = backend
        self._open_ids = open_ids
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._num_fed = 0
        self._given: list[str] = []

    def push(self, ids: Sequence[int]) -> str:
        """The characters these tokens complete; may be empty."""
        pieces: list[str] = []
        for token in ids:
            self._ids.append(token)
            if token not in self._open_ids:
                pieces.append(self._step(self._ids[self._num_fed :]))
                self._num_fed = len(self._ids)
        text = "".join(pieces)
        self._given.append(text)
        return text

    def finish(self) -> str:
        """What was kept back, replacement characters for incomplete ones."""
        whole = self._backend.decode(self._ids, skip_special_tokens=True)
        given = "".join(self._given)
        self._given = [whole]
        return whole[len(given) :]

    def _step(self, ids: list[int]) -> str:
        if self._stream is None:
            return ""
        try:
            return self._stream.step(self._backend, ids if len(ids) > 1 else ids[0]) or ""
        except Exception:  # the library raises the bare class: these ids have no stable prefix
            self._stream = None  # the rest of the text comes with `finish`
            return ""


def _max_token_bytes(backend: Tokenizer) -> int:
    """The longest token of the vocabulary.

    A tokenizer that folds any number of unknown characters into one token has no such bound;
    its texts are held to this one all the same.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    plain = backend.get_vocab(with_added_tokens=False)
    letters = set(ByteLevel.alphabet())  # where one character stands for one byte
    if all(letters.issuperset(token) for token in plain):
        longest = max(map(len, plain), default=1)
    else:
        longest = max((len(token.encode()) for token in plain), default=1)
    added = backend.get_added_tokens_decoder().values()
    return max(longest, *(len(token.content.encode()) for token in added), 1)


def find_model(model: str) -> None:
    """The libraries that read a model take a directory that is not there for an id.

    Raises:
        ConfigError: it is neither a directory with a model nor in the local cache.
    """
    if Path(model).is_dir():
        if not Path(model, "config.json").is_file():
            raise ConfigError(
                f"--model is {model!r}: the directory has no config.json", field="--model"
            )
        return
    from transformers.utils.hub import cached_file

    try:
        cached_file(model, "config.json", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--model is {model!r}: there is no such directory, and no model of this name in the "
            "local Hugging Face cache",
            field="--model",
        ) from error


def load_text(model: str) -> Text:
    """Reads the tokenizer of a directory, or of an id in the local cache.

    Raises:
        ModelRefused: there is none that can be used, with the reason.
    """
    from transformers import AutoTokenizer  # brings torch in: only a server pays for it

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # broken files make these libraries raise nearly anything
        raise ModelRefused(
            f"--model is {model!r} and its tokenizer cannot be read: {error}", field="--model"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelRefused(
            f"--model is {model!r}; its tokenizer ({type(tokenizer).__name__}) has no "
            "tokenizer.json form, which streaming text needs",
            field="--model",
        )
    return Text(backend)
