"""A request's prompt as token ids, whichever way it came: text, ids, chat messages.

Whatever could not fit is refused by its length before it costs anything; long texts are encoded
and templates rendered beside the event loop (encoding.py). Called by generation.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto import lorry_pb2 as pb
from ..errors import InvalidRequest
from ..seam import EngineInfo
from .chat import ChatTemplate, Conversation, chat_bytes, check_count, read_chat
from .encoding import EncodingLanes
from .request import check_bytes, check_room
from .text import Text

if TYPE_CHECKING:
    from tokenizers import Encoding

# Below this a text is encoded on the loop: a thread would take longer.
SHORT_TEXT_CHARS = 2048
# A template takes about as long for a message as the tokenizer for so much text.
MESSAGE_BYTES = 64


class PromptReader:
    def __init__(self) -> None:
        self._lanes = EncodingLanes()

    async def read(
        self, request: pb.GenerateRequest, text: Text, info: EngineInfo
    ) -> tuple[int, ...]:
        """No more than the context holds, however long the message is.

        Raises:
            InvalidRequest: there is no prompt, or it is empty or not to be understood.
            RequestTooLarge: it leaves no room for an answer.
            Overloaded: too much waits to be encoded.
        """
        match request.WhichOneof("prompt"):
            case "text":
                return await self._read_text(request.text, text, info)
            case "token_ids":
                return _read_ids(request.token_ids, info)
            case "chat":
                return await self._read_chat(request.chat, text, info)
            case _:
                raise InvalidRequest(
                    "the prompt is missing: give text, token_ids or chat", field="prompt"
                )

    async def _read_text(self, prompt: str, text: Text, info: EngineInfo) -> tuple[int, ...]:
        if not prompt:
            raise InvalidRequest("text is empty; a prompt has at least one token", field="text")
        size_bytes = len(prompt.encode())
        check_bytes("text", size_bytes, info=info, max_token_bytes=text.max_token_bytes)
        if len(prompt) < SHORT_TEXT_CHARS:
            return text.encode(prompt)
        encoding = await self._lanes.run(size_bytes, text.encode_aside, prompt)
        check_room(len(encoding), info)
        return tuple(encoding.ids)

    async def _read_chat(self, chat: pb.Chat, text: Text, info: EngineInfo) -> tuple[int, ...]:
        if text.chat is None:
            raise InvalidRequest(
                "chat is given and the model has no chat template; give text or token_ids",
                field="chat",
            )
        check_count(chat)  # first: a message of 8 MiB holds millions of empty ones
        max_token_bytes = text.max_token_bytes
        size_bytes = chat_bytes(chat)
        check_bytes("chat", size_bytes, info=info, max_token_bytes=max_token_bytes)
        conversation = read_chat(chat)
        cost_bytes = size_bytes + MESSAGE_BYTES * len(conversation.messages)
        encoding = await self._lanes.run(
            cost_bytes, _encode_chat, text.chat, conversation, text, info
        )
        check_room(len(encoding), info)
        return tuple(encoding.ids)


def _encode_chat(
    template: ChatTemplate, conversation: Conversation, text: Text, info: EngineInfo
) -> Encoding:
    """The template writes the special tokens itself: none are added."""
    rendered = template.render(conversation)
    size_bytes = len(rendered.encode())
    check_bytes("chat", size_bytes, info=info, max_token_bytes=text.max_token_bytes)
    return text.encode_aside(rendered, add_special_tokens=False)


def _read_ids(token_ids: pb.TokenIds, info: EngineInfo) -> tuple[int, ...]:
    if not token_ids.ids:
        raise InvalidRequest(
            "token_ids is empty; a prompt has at least one token", field="token_ids"
        )
    check_room(len(token_ids.ids), info)
    return tuple(token_ids.ids)
