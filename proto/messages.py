"""What both clients ask, as pure functions: requests built, messages as plain data.

Nothing here waits, connects or reads a file, so the sync and the async client share all of it
and differ in their transport only. Each value is checked in values.py; what comes back is put
together in completion.py. Imports protobuf, not grpc. Used by client.py, async_client.py and,
for `to_plain`, the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from google.protobuf.message import Message

from . import lorry_pb2 as pb
from . import values


class ChatMessage(TypedDict):
    role: str  # what the model's template knows: system, user, assistant, tool
    content: str


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate` and `complete`; what is left out, or None, is the server's default."""

    messages: Sequence[ChatMessage] | None  # in place of a prompt: by the model's own template
    template: Mapping[str, object] | None  # further variables of it: tools, documents, switches
    adapter: str | None  # name; empty: the base model
    max_new_tokens: int | None
    n: int | None  # answers to this prompt
    temperature: float | None  # 0: the most likely token, always
    seed: int | None  # None: the server draws one and returns it
    top_k: int | None  # of the most likely tokens; 0: all
    top_p: float | None  # smallest set of this much probability; 1: all
    min_p: float | None  # of the likeliest token's probability; 0: all
    repetition_penalty: float | None  # 1: none
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None  # by token id, added to its logit
    stop: str | Sequence[str] | None  # texts that end the answer
    include_stop: bool | None  # whether such a text stays
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None  # this many of the most likely tokens beside each; None: none at all
    prompt_logprobs: int | None
    ttft_s: float | None  # bounds asked for; 0: the server's
    tpot_s: float | None


Given = Mapping[str, object]  # options without those that are None
Reader = Callable[[str, object], Any]

# Options that are a field of the same name, by the message they are in.
REQUEST: dict[str, Reader] = {
    "adapter": values.text,
    "max_new_tokens": values.count,
    "n": values.count,
    "include_stop": values.flag,
    "ignore_eos": values.flag,
    "logprobs": values.count,
    "prompt_logprobs": values.count,
}
SAMPLING: dict[str, Reader] = {
    "temperature": values.number,
    "seed": values.seed,
    "top_k": values.count,
    "top_p": values.number,
    "min_p": values.number,
    "repetition_penalty": values.number,
    "presence_penalty": values.number,
    "frequency_penalty": values.number,
}
SLO: dict[str, Reader] = {"ttft_s": values.number, "tpot_s": values.number}


def generate_request(
    prompt: str | Sequence[int] | None = None, **options: Unpack[GenerateOptions]
) -> pb.GenerateRequest:
    """`prompt` is text, or token ids of the model's own vocabulary; None with `messages`.

    Raises:
        InvalidRequest: what the wire cannot carry; names the field.
        TypeError: there is no such option.
    """
    if unknown := sorted(options.keys() - GenerateOptions.__annotations__.keys()):
        raise TypeError(f"generate has no option {unknown[0]!r}")
    given: Given = {name: value for name, value in options.items() if value is not None}
    request = pb.GenerateRequest(
        sampling=pb.Sampling(
            logit_bias=values.bias("sampling.logit_bias", given.get("logit_bias", {}))
        ),
        slo=pb.Slo(),
        stop=values.texts("stop", given.get("stop", ())),
        stop_token_ids=values.ids("stop_token_ids", given.get("stop_token_ids", ())),
    )
    _fill(request, REQUEST, given)
    _fill(request.sampling, SAMPLING, given, "sampling.")
    _fill(request.slo, SLO, given, "slo.")
    _set_prompt(request, prompt, given)
    return request


def _fill(message: Message, readers: Mapping[str, Reader], given: Given, within: str = "") -> None:
    for name, read in readers.items():
        if name in given:
            setattr(message, name, read(f"{within}{name}", given[name]))


def num_answers(request: pb.GenerateRequest) -> int:
    return request.n or 1


def check_single(request: pb.GenerateRequest) -> None:
    """`complete` gives one answer: the others would be lost without a word."""
    if num_answers(request) != 1:
        values.refuse("n", f"n is {request.n}; complete_all gives more than one answer")


def _set_prompt(request: pb.GenerateRequest, prompt: object, given: Given) -> None:
    messages = given.get("messages")
    if (prompt is None) == (messages is None):
        found = "both are" if messages is not None else "neither is"
        values.refuse("prompt", f"give either a prompt or messages; {found} given")
    template_json = values.json_object("template", given.get("template", {}))
    if messages is not None:
        request.chat.CopyFrom(_chat(messages, template_json))
    elif template_json:
        values.refuse("template", "template is given without messages to put into it")
    elif isinstance(prompt, str):
        request.text = values.text("text", prompt)
    else:
        # Never by its truth: an array has none, and one of token 0 would be false.
        request.token_ids.SetInParent()
        request.token_ids.ids.extend(values.ids("prompt", prompt, named="token_ids"))


def _chat(messages: object, template_json: str) -> pb.Chat:
    chat = pb.Chat(template_json=template_json)
    for place, message in enumerate(values.items("messages", messages, "a list of messages")):
        field = f"chat.messages[{place}]"
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            values.refuse(field, f"{field} is {kind}; it must be a mapping of role and content")
        turn = cast("Mapping[str, object]", message)
        if set(turn) != {"role", "content"}:
            keys = sorted(map(str, turn))
            values.refuse(field, f"{field} has the keys {keys}; it must have role and content")
        chat.messages.add(
            role=values.text(f"{field}.role", turn["role"]),
            content=values.text(f"{field}.content", turn["content"]),
        )
    return chat


def list_request(prefix: str, page_size: int, page_token: str) -> pb.ListAdaptersRequest:
    return pb.ListAdaptersRequest(
        prefix=values.text("prefix", prefix),
        page_size=values.count("page_size", page_size),
        page_token=page_token,
    )


TIERS = {"pool": pb.TIER_POOL, "host": pb.TIER_HOST}


def prefetch_request(name: str, *, tier: str | None, pin: bool | None) -> pb.PrefetchRequest:
    """Raises:
    InvalidRequest: what the wire cannot carry; names the field.
    """
    request = pb.PrefetchRequest(name=values.text("name", name))
    if tier is not None:
        if values.text("tier", tier) not in TIERS:
            values.refuse("tier", f"tier is {tier!r}; it must be one of {', '.join(TIERS)}")
        request.tier = TIERS[tier]
    if pin is not None:
        request.pin = values.flag("pin", pin)
    return request


def to_plain(message: Message) -> dict[str, object]:
    """Fields by their names in lorry.proto, unset ones with their zero, ready for JSON.

    protobuf's own JSON form turns 64-bit numbers into strings; here numbers stay numbers.
    """
    plain: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [_plain_value(field, item) for item in value]
        else:
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_value(field: object, value: object) -> object:
    if isinstance(value, Message):
        return to_plain(value)
    if isinstance(value, bytes):
        return value.hex()
    enum = getattr(field, "enum_type", None)
    if enum is not None and value in enum.values_by_number:
        return enum.values_by_number[value].name
    return value
