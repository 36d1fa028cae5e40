"""Text to tokens and back.

Owns the model's tokenizer: local files only, no code of the model's own. `encode` adds the
special tokens that the tokenizer adds; `encode_aside` works without the interpreter's lock;
`stream` turns the tokens of one answer into text as they arrive (text_stream.py). Carries the
model's chat template (chat.py). Knows no requests; the front end calls it, on any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, ModelRefused
from .chat import ChatTemplate
from .text_stream import ByteStream, FallbackStream, LibraryStream, TextStream, read_fallback
from .token_bytes import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Text:
    """`backend` is the tokenizers-library object; it is never changed after this."""

    def __init__(self, backend: Tokenizer, chat: ChatTemplate | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.chat = chat  # None: the model has no chat template
        self.token_bytes = TokenBytes(backend)
        self._fallback = read_fallback(backend.decoder)
        self.max_token_bytes = _max_token_bytes(backend)  # of text that one token can stand for

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text).ids)

    def encode_aside(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """As `encode`, for a thread beside the loop: only the library's calls for batches let
        other threads run meanwhile. Its length is known before its ids are made into objects.
        """
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """The way of the model's decoder."""
        if self.token_bytes.is_byte_level:
            return ByteStream(self.token_bytes)
        if self._fallback is not None:
            return FallbackStream(self.token_bytes, self._fallback)
        return LibraryStream(self._backend, self.token_bytes)


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
    return Text(backend, ChatTemplate(tokenizer) if tokenizer.chat_template else None)
