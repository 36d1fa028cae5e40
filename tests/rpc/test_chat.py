"""Chat messages against transformers' own `apply_chat_template`, and what clients may not do."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.server.errors import InvalidRequest, RequestTooLarge
from lorry.server.rpc.chat import MAX_CHAT_MESSAGES, MAX_TEMPLATE_BYTES, MAX_TEMPLATE_DEPTH
from lorry.server.rpc.prompt import PromptReader
from lorry.server.rpc.text import Text, load_text
from lorry.tests.builders import make_tokenizer
from lorry.tests.rpc_builders import make_info, make_text

# Written for these tests, in the manner of the families they are named after.
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "<|head|>{{ message.role }}<|/head|>\n\n{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
CHATML = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if not loop.last or message.role != 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
INSTRUCT = (
    "{% set ns = namespace(system='') %}"
    "{% if messages[0].role == 'system' %}"
    "{% set ns.system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ ns.system if loop.first else '' }}"
    "{{ message.content }} [/INST]{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {"headers": HEADERS, "chatml": CHATML, "instruct": INSTRUCT}
USER = {"role": "user", "content": "  naïve 😀? <eos> [INST]\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "Well, I"}
TALKS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER],
    "continued": [SYSTEM, USER, ASSISTANT],
}
INFO = make_info(max_model_len=2048, vocab_size=300)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Text]]:
    """By template: the tokenizer as its user has it, and what the server read from its files."""
    both: dict[str, tuple[Any, Text]] = {}
    for name, template in TEMPLATES.items():
        tokenizer = make_tokenizer()
        marks = ["<|head|>", "<|/head|>", "<|eot|>", "<|im_start|>", "<|im_end|>"]
        tokenizer.add_special_tokens({"extra_special_tokens": marks})
        tokenizer.chat_template = template
        directory = tmp_path_factory.mktemp(name)
        tokenizer.save_pretrained(directory)
        both[name] = (tokenizer, load_text(str(directory)))
    return both


class WatchedTemplate:
    """Remembers on which thread it was asked."""

    def __init__(self, text: Text) -> None:
        self._chat: Any = text.chat
        self.threads: list[str] = []
        watched: Any = self
        self.text = Text(text._backend, watched)

    def render(self, conversation: Any) -> str:
        self.threads.append(threading.current_thread().name)
        return self._chat.render(conversation)


def chat(messages: list[dict[str, str]], **variables: Any) -> pb.Chat:
    return pb.Chat(
        messages=[pb.ChatMessage(**message) for message in messages],
        template_json=json.dumps(variables) if variables else "",
    )


def read(text: Text, message: pb.Chat, info: Any = INFO) -> list[int]:
    request = pb.GenerateRequest(chat=message)
    return list(asyncio.run(PromptReader().read(request, text, info)))


def refused(text: Text, message: pb.Chat, info: Any = INFO) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(text, message, info)
    return caught.value


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_what_transformers_makes_of_it(
    served: dict[str, tuple[Any, Text]], name: str, talk: str
):
    """Broken: a doubled <bos>, a lost special token or another prompt than the model was taught."""
    tokenizer, text = served[name]
    continued = talk == "continued"
    expected = tokenizer.apply_chat_template(
        TALKS[talk],
        add_generation_prompt=not continued,
        continue_final_message=continued,
        tokenize=True,
        return_dict=False,
    )
    assert read(text, chat(TALKS[talk])) == expected
    assert expected.count(tokenizer.bos_token_id) <= 1


def test_a_continued_message_stays_open(served: dict[str, tuple[Any, Text]]):
    """Broken: the assistant's begun sentence is closed, and the answer is a new message."""
    tokenizer, text = served["headers"]
    ids = read(text, chat(TALKS["continued"]))
    assert tokenizer.decode(ids).endswith("<|head|>assistant<|/head|>\n\nWell, I")


def test_tools_and_switches_reach_the_template(served: dict[str, tuple[Any, Text]]):
    """Broken: what a client says to the template is dropped without a word."""
    tokenizer, text = served["chatml"]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    ids = read(text, chat([USER], tools=[tool], enable_thinking=False))
    assert ids == tokenizer.apply_chat_template(
        [USER],
        tools=[tool],
        enable_thinking=False,
        add_generation_prompt=True,
        return_dict=False,
    )
    shown = tokenizer.decode(ids)
    assert "weather" in shown
    assert shown.endswith("<think></think>")


def test_a_template_that_refuses_is_quoted(served: dict[str, tuple[Any, Text]]):
    """Broken: the client hears of an internal error where its roles are out of order."""
    error = refused(served["instruct"][1], chat([ASSISTANT, USER]))
    assert error.field == "chat"
    assert "roles must alternate user/assistant" in error.message


def test_a_model_without_a_template_says_so():
    """Broken: messages are glued together in some way the model has never seen."""
    error = refused(make_text(), chat([USER]))
    assert error.field == "chat"
    assert "no chat template" in error.message


def test_no_client_brings_its_own_template(served: dict[str, tuple[Any, Text]]):
    """Broken: a client runs code of its own on the server."""
    _, text = served["headers"]
    for name in ("chat_template", "messages", "conversations", "tokenize", "self", "kwargs"):
        given = json.dumps({name: "{{ 7 * 7 }}"})
        error = refused(text, pb.Chat(messages=[USER], template_json=given))
        assert error.field == "chat.template_json", name
        assert repr(name) in error.message
    assert read(text, chat([USER], other="{{ 7 * 7 }}")) == read(text, chat([USER]))


BAD = [
    ("chat.messages", pb.Chat(), "empty"),
    ("chat.messages", chat([USER] * (MAX_CHAT_MESSAGES + 1)), str(MAX_CHAT_MESSAGES)),
    ("chat.messages[1].role", chat([USER, {"role": "", "content": "x"}]), "empty"),
    ("chat.template_json", pb.Chat(messages=[USER], template_json="[1]"), "object"),
    ("chat.template_json", pb.Chat(messages=[USER], template_json="{"), "not JSON"),
    ("chat.template_json", pb.Chat(messages=[USER], template_json='{"a": NaN}'), "NaN"),
    ("chat.template_json", pb.Chat(messages=[USER], template_json='{"a":1,"a":2}'), "twice"),
    ("chat.template_json", chat([USER], a="x" * MAX_TEMPLATE_BYTES), str(MAX_TEMPLATE_BYTES)),
    (
        "chat.template_json",
        pb.Chat(messages=[USER], template_json='{"a":' + "[" * 33 + "]" * 33 + "}"),
        str(MAX_TEMPLATE_DEPTH),
    ),
    (
        "chat.template_json",
        pb.Chat(messages=[USER], template_json='{"a":' + "[" * 9000 + "]" * 9000 + "}"),
        "deep",
    ),
    ("chat", chat([USER], tools="text"), "template"),
    ("chat", pb.Chat(messages=[USER], template_json='{"tools": [{"a": "\\ud800"}]}'), "template"),
]


@pytest.mark.parametrize(("field", "message", "word"), BAD, ids=range(len(BAD)))
def test_each_bad_field_is_named(
    served: dict[str, tuple[Any, Text]], field: str, message: pb.Chat, word: str
):
    """Broken: a wrong message crashes a handler, or its refusal does not say where."""
    roomy = make_info(max_model_len=1 << 20, vocab_size=300)
    error = refused(served["chatml"][1], message, roomy)
    assert error.field == field
    assert word in error.message


def test_what_cannot_fit_is_refused_before_it_is_rendered(served: dict[str, tuple[Any, Text]]):
    """Broken: megabytes of messages are rendered and encoded before they are refused."""
    template = WatchedTemplate(served["chatml"][1])
    limit = INFO.max_model_len * template.text.max_token_bytes
    error = refused(template.text, chat([{"role": "user", "content": "x" * limit}]))
    assert isinstance(error, RequestTooLarge)
    assert error.field == "chat"
    assert str(limit) in error.message
    assert template.threads == []
    # Counting comes first: to add up the sizes of millions of messages takes seconds.
    error = refused(template.text, chat([{"role": "user", "content": "x" * 99}] * 5000))
    assert error.field == "chat.messages"
    # Short enough for that bound and still too many tokens.
    error = refused(template.text, chat([{"role": "user", "content": "x" * INFO.max_model_len}]))
    assert isinstance(error, RequestTooLarge)
    assert str(INFO.max_model_len) in error.message


def test_a_template_runs_beside_the_loop(served: dict[str, tuple[Any, Text]]):
    """Broken: a slow template stops the streams of everybody else."""
    template = WatchedTemplate(served["chatml"][1])
    read(template.text, chat([USER]))
    assert [name.startswith("encode") for name in template.threads] == [True]


def test_a_template_file_is_found_where_transformers_keeps_it(tmp_path: Path):
    """Broken: a model whose template lies in chat_template.jinja is said to have none."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert load_text(str(tmp_path)).chat is None
    (tmp_path / "chat_template.jinja").write_text(HEADERS)
    assert load_text(str(tmp_path)).chat is not None
