"""`lorry generate` with everything a request may say, against a recording server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from lorry.proto import lorry_pb2 as pb
from lorry.proto.messages import GenerateOptions
from lorry.server.cli import app, main
from lorry.tests.proto_builders import TEXT, FakeServer


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lists of messages, in the directory where the command runs."""
    monkeypatch.chdir(tmp_path)
    Path("object").write_text("{}")
    Path("latin").write_bytes(b'["\xfc"]')


Captured = pytest.CaptureFixture[str]


def test_every_generate_flag_reaches_its_own_field(server: FakeServer, capsys: Captured) -> None:
    """Two flags crossed over, or one forgotten, would sample otherwise than asked."""
    flags = (
        "--chat --system brief --adapter upper --max-new-tokens 5 --n 2 --temperature 0.5 --seed 3 "
        "--top-k 7 --top-p 0.25 --min-p 0.125 --repetition-penalty 1.5 --presence-penalty -0.5 "
        "--frequency-penalty 0.75 --stop a --stop b --include-stop --logprobs 0 "
        "--prompt-logprobs 2 --logit-bias 4=-1.5 --logit-bias 9=2 --stop-token-id 8 "
        "--stop-token-id 6 --ttft 1.5 --tpot 0.25"
    )
    template = ["--template", '{"thinking": false}']
    assert main(["generate", "prompt", *flags.split(), *template]) == 0
    (request,) = server.heard.generate
    assert request == pb.GenerateRequest(
        chat=pb.Chat(
            messages=[
                pb.ChatMessage(role="system", content="brief"),
                pb.ChatMessage(role="user", content="prompt"),
            ],
            template_json='{"thinking": false}',
        ),
        adapter="upper",
        max_new_tokens=5,
        n=2,
        sampling=pb.Sampling(
            temperature=0.5,
            seed=3,
            top_k=7,
            top_p=0.25,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.75,
            logit_bias={4: -1.5, 9: 2.0},
        ),
        slo=pb.Slo(ttft_s=1.5, tpot_s=0.25),
        stop_token_ids=[8, 6],
        stop=["a", "b"],
        include_stop=True,
        logprobs=0,
        prompt_logprobs=2,
    )
    out, err = capsys.readouterr()
    assert "likeliest" not in out, "what is piped on is text alone"
    assert "likeliest" in err
    assert "'x' -0.25" in err
    assert err.count("stop at 'a'") == 2


def test_a_chat_needs_no_system_message(server: FakeServer) -> None:
    """--chat alone would send the prompt as plain text, which a chat model answers badly."""
    assert main(["generate", "prompt", "--chat", "--ignore-eos"]) == 0
    (request,) = server.heard.generate
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("user", "prompt")]
    assert request.ignore_eos
    assert not request.include_stop


def test_several_answers_are_told_apart(server: FakeServer, capsys: Captured) -> None:
    """Answers that come mixed, token by token, could be read by no one."""
    assert main(["generate", "prompt", "--n", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == TEXT
    assert len(out.splitlines()) == 2
    assert err.index("answer 0") < err.index("answer 1")
    assert main(["generate", "prompt", "--n", "2", "--logprobs", "1", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [answer["index"] for answer in answers] == [0, 1]
    assert answers[0]["logprobs"][0]["token_hex"] == "c3"


def test_a_prompt_may_be_token_ids_or_a_whole_chat(server: FakeServer, tmp_path: Path) -> None:
    """Broken: what the API takes as a prompt cannot be asked from the command line."""
    file = tmp_path / "chat.json"
    turns = [{"role": role, "content": f"{role} ü"} for role in ("user", "assistant", "user")]
    file.write_text(json.dumps(turns))
    assert main(["generate", "--token-ids", "3,0, 7"]) == 0
    assert main(["generate", "--messages", str(file), "--template", '{"tools": []}']) == 0
    ids, chat = server.heard.generate
    assert ids == pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[3, 0, 7]), sampling=pb.Sampling(), slo=pb.Slo(), n=1
    )
    assert [{"role": t.role, "content": t.content} for t in chat.chat.messages] == turns
    assert chat.chat.template_json == '{"tools": []}'


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "one of PROMPT, --token-ids and --messages"),
        (["x", "--token-ids", "1"], "one of PROMPT"),
        (["--token-ids", "1,,2"], "write 1,2,3"),
        (["--token-ids", "1", "--chat"], "do not go with --token-ids"),
        (["--messages", "none"], "cannot be read: No such file"),
        (["--messages", "object", "--system", "x"], "--system goes with PROMPT"),
        (["--messages", "object"], "holds no list"),
        (["--messages", "latin"], "is not JSON"),
        (["x", "--template", "{"], "is not JSON"),
        (["x", "--template", "[]"], "no JSON object"),
        (["x", "--logit-bias", "4"], "write ID=BIAS"),
        (["x", "--logit-bias", "4=1", "--logit-bias", "4=2"], "token 4 twice"),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_be_read_is_bad_usage(
    server: FakeServer, files: None, capsys: Captured, flags: list[str], words: str
) -> None:
    """Broken: a traceback, one of two prompts dropped, or one of two biases."""
    assert main(["generate", *flags]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
    assert server.heard.generate == []


def test_every_option_of_a_request_is_a_flag_with_words_of_its_own() -> None:
    """Broken: the command line lacks what the API has, or a help line leans on another's."""
    group: Any = typer.main.get_command(app)
    params = group.commands["generate"].params
    renamed = {"stop_token_id": "stop_token_ids", "ttft": "ttft_s", "tpot": "tpot_s"}
    named = {renamed.get(param.name, param.name) for param in params}
    assert set(GenerateOptions.__annotations__) <= named
    helps = [param.help for param in params]
    assert all(helps)
    leaning = ("The same", "Their ", "And ", "Its ", "Such ")
    assert [text for text in helps if text.startswith(leaning)] == []
    assert len(set(helps)) == len(helps)
