"""Chat messages to one prompt, by the template that came with the model.

Owns what a client may hand to a template, and in which bounds; the rendering is transformers'
(`apply_chat_template`, jinja2 in its sandbox). A template is part of the model's directory and
trusted as the weights are; what a client sends is data to it, never a template. Knows no tokens.
Called by prompt.py, the rendering on its thread.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

from ...adapters.errors import AdapterRefused
from ...adapters.json_object import read_object
from ...proto import lorry_pb2 as pb
from ..errors import InvalidRequest

# A template runs once over every message, in Python: this many take about 10 ms.
MAX_CHAT_MESSAGES = 4096
# Tools and switches; a whole catalogue of tools is some ten KiB.
MAX_TEMPLATE_BYTES = 64 << 10
MAX_TEMPLATE_DEPTH = 32  # a JSON schema of a tool nests about ten deep
# Of the template's variables, those that a client may give although transformers names them.
OPEN_NAMES = frozenset({"tools", "documents"})
# Never a client's, whatever a tokenizer's own `apply_chat_template` calls its arguments: with
# `chat_template` it would run code of its own here.
CLOSED_NAMES = frozenset({"self", "conversation", "conversations", "messages", "chat_template"})
TEMPLATE_FIELD = "chat.template_json"


class TemplateTokenizer(Protocol):
    """What is used of transformers' tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages, as a template sees them."""

    messages: list[dict[str, str]]
    variables: dict[str, object]

    @property
    def continues(self) -> bool:
        """The answer goes on where the assistant's last message ends."""
        return self.messages[-1]["role"] == "assistant"


class ChatTemplate:
    """The model's own; exists only where the model has one."""

    def __init__(self, tokenizer: TemplateTokenizer) -> None:
        self._tokenizer = tokenizer
        named = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = (CLOSED_NAMES | named.keys()) - OPEN_NAMES

    def render(self, conversation: Conversation) -> str:
        """Raises:
        InvalidRequest: the template refuses the messages; with its own words.
        """
        reserved = sorted(self._reserved & conversation.variables.keys())
        if reserved:
            raise InvalidRequest(
                f"{TEMPLATE_FIELD} has {reserved[0]!r}, which is not the client's to set",
                field=TEMPLATE_FIELD,
            )
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation.messages,
                tokenize=False,
                add_generation_prompt=not conversation.continues,
                continue_final_message=conversation.continues,
                **conversation.variables,
            )
            rendered.encode()  # JSON can spell half a character, which no text may hold
        except Exception as error:  # a template raises whatever its author thought of
            raise InvalidRequest(
                f"chat cannot be put into the model's template: {error or type(error).__name__}",
                field="chat",
            ) from error
        return rendered


def check_count(chat: pb.Chat) -> None:
    """Raises:
    InvalidRequest: no messages, or too many.
    """
    if not chat.messages:
        raise InvalidRequest("chat.messages is empty; it needs at least one", field="chat.messages")
    if len(chat.messages) > MAX_CHAT_MESSAGES:
        raise InvalidRequest(
            f"chat.messages has {len(chat.messages)} entries; at most {MAX_CHAT_MESSAGES}",
            field="chat.messages",
        )


def read_chat(chat: pb.Chat) -> Conversation:
    """Of as many messages as are allowed (`check_count`).

    Raises:
        InvalidRequest: a field is wrong or beyond its limit.
    """
    for place, message in enumerate(chat.messages):
        if not message.role:
            field = f"chat.messages[{place}].role"
            raise InvalidRequest(f"{field} is empty; it says who speaks", field=field)
    return Conversation(
        messages=[{"role": message.role, "content": message.content} for message in chat.messages],
        variables=_variables(chat.template_json),
    )


def chat_bytes(chat: pb.Chat) -> int:
    """Of all the text a client gives."""
    spoken = sum(
        len(message.role.encode()) + len(message.content.encode()) for message in chat.messages
    )
    return spoken + len(chat.template_json.encode())


def _variables(template_json: str) -> dict[str, object]:
    if not template_json:
        return {}
    data = template_json.encode()
    if len(data) > MAX_TEMPLATE_BYTES:
        raise InvalidRequest(
            f"{TEMPLATE_FIELD} has {len(data)} bytes; at most {MAX_TEMPLATE_BYTES}",
            field=TEMPLATE_FIELD,
        )
    try:
        variables = read_object(data, what=TEMPLATE_FIELD, field=TEMPLATE_FIELD)
    except AdapterRefused as refused:
        raise InvalidRequest(refused.message, field=TEMPLATE_FIELD) from refused
    if _depth(variables) > MAX_TEMPLATE_DEPTH:
        raise InvalidRequest(
            f"{TEMPLATE_FIELD} is nested deeper than {MAX_TEMPLATE_DEPTH}", field=TEMPLATE_FIELD
        )
    return variables


def _depth(value: object) -> int:
    """Of nested objects and lists; level by level, so that no depth is too much to measure."""
    depth, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += any(isinstance(item, dict | list) for item in level)
        level = inner
    return depth
