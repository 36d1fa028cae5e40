"""The `lorry` command, run in this process against a recording server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from lorry.proto.transport import DEFAULT_ADDRESS
from lorry.server import cli_options
from lorry.server.cli import BENCHES, main
from lorry.server.cli_options import parse_size, write_size
from lorry.server.config import (
    MemoryConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
    ServiceConfig,
)
from lorry.server.errors import EngineUnavailable
from lorry.tests.proto_builders import TEXT, FakeServer, make_peft_directory

NOBODY = "127.0.0.1:1"
GIB = 1 << 30


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    shared.heard.__init__()
    monkeypatch.setenv("LORRY_ADDRESS", shared.address)
    return shared


Captured = pytest.CaptureFixture[str]


def test_generate_prints_the_answer_alone_on_stdout(server: FakeServer, capsys: Captured) -> None:
    """Text and figures on one stream could not be piped on."""
    arguments = ["--adapter", "upper", "--max-new-tokens", "5", "--seed", "3"]
    assert main(["generate", "prompt", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert "7 + 4 tokens" in err
    (request,) = server.heard.generate
    assert (request.text, request.adapter, request.max_new_tokens) == ("prompt", "upper", 5)
    assert request.sampling.seed == 3


def test_generate_without_streaming_prints_the_same(server: FakeServer, capsys: Captured) -> None:
    """The two ways of printing are two branches."""
    assert main(["generate", "prompt", "--no-stream"]) == 0
    assert capsys.readouterr().out == TEXT + "\n"


def test_generate_json_is_one_document_with_everything(
    server: FakeServer, capsys: Captured
) -> None:
    """A script that reads stdout must find JSON and nothing beside it."""
    assert main(["generate", "prompt", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["text"] == TEXT
    assert document["token_ids"] == [1, 2, 3, 4]
    assert document["usage"]["completion_tokens"] == 4
    assert document["timing"]["tpot_s"] == 0.0625
    assert document["seed"] == 2**63 + 1


def test_a_refusal_is_one_sentence_and_exit_code_one(server: FakeServer, capsys: Captured) -> None:
    """A traceback, or a zero exit code, in place of what the server said."""
    assert main(["generate", "prompt", "--adapter", "full"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "max_waiting: the queue holds 10 requests" in err
    assert "try again in 2.5 s" in err


def test_a_refusal_in_json_keeps_its_fields(server: FakeServer, capsys: Captured) -> None:
    """A script should not have to parse the sentence."""
    assert main(["adapter", "show", "nope", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["resource"]) == ("NOT_FOUND", "nope")


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "prompt"],
        ["info"],
        ["adapter", "list"],
        ["adapter", "show", "x"],
        ["adapter", "delete", "x"],
    ],
    ids=" ".join,
)
def test_an_unreachable_server_is_exit_code_three(command: list[str], capsys: Captured) -> None:
    """A script must tell a server that says no from one that is not there."""
    assert main([*command, "--address", NOBODY]) == 3
    _, err = capsys.readouterr()
    assert NOBODY in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        ["nonsense"],
        ["generate"],
        ["generate", "prompt", "--temperature", "warm"],
        ["generate", "prompt", "--max-new-tokens", "-1"],
        ["adapter", "upload"],
        ["bench", "nonsense"],
        ["serve"],
        ["serve", "--model", "x", "--pool-bytes", "12 parsecs"],
        ["serve", "--model", "x", "--max-rank", "300"],
        ["serve", "--model", "x", "--max-bypass", "-5"],
        ["serve", "--model", "x", "--max-bypass", "inf"],
        ["serve", "--model", "x", "--ttft", "nan"],
        ["serve", "--model", "x", "--tpot", "inf"],
        ["serve", "--model", "x", "--drain", "nan"],
        ["serve", "--model", "x", "--port", "65536"],
        ["serve", "--model", "x", "--metrics-port", "99999"],
        ["serve", "--model", "x", "--metrics-port", "-2"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_code_two(command: list[str], capsys: Captured) -> None:
    """Bad usage must differ from a server's no, and show no traceback."""
    assert main(command, run_server=lambda config: 0) == 2
    _, err = capsys.readouterr()
    assert err
    assert "Traceback" not in err


def test_info_shows_what_is_served(server: FakeServer, capsys: Captured) -> None:
    """The adapter's brackets would vanish if rich read the name as markup."""
    assert main(["info", "--wait", "10"]) == 0
    out, _ = capsys.readouterr()
    assert "tiny" in out
    assert "[upper]" in out
    assert "59 free" in out


def test_info_json_has_both_answers(server: FakeServer, capsys: Captured) -> None:
    """64-bit counters must be numbers in JSON."""
    assert main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["info"]["num_pages"] == 64
    assert document["stats"]["tokens_decode_total"] == 2**40


def test_upload_goes_on_after_a_refusal_and_tells_at_the_end(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """One bad adapter in a folder of hundreds must not keep the others back."""
    names = ["first", "bad", "empty", "last"]
    folders = [make_peft_directory(tmp_path / name) for name in names]
    (folders[2] / "adapter_config.json").unlink()
    assert main(["adapter", "upload", *map(str, folders)]) == 1
    out, err = capsys.readouterr()
    assert [header.name for header in server.heard.headers] == ["first", "bad", "last"]
    assert "first" in out
    assert "last" in out
    assert "use_dora is true" in err
    assert "adapter_config.json" in err
    assert "trained on another base" in err


def test_two_directories_of_one_name_are_refused_before_anything_is_sent(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """The second would replace the first, and both be listed as stored."""
    folders = [make_peft_directory(tmp_path / run / "final") for run in ("d1", "d2")]
    assert main(["adapter", "upload", *map(str, folders)]) == 2
    assert server.heard.headers == []
    err = capsys.readouterr().err
    assert str(folders[0]) in err
    assert str(folders[1]) in err


def test_upload_json_lists_stored_and_failed(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """A script needs both lists, with the directory of each failure."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("good", "bad")]
    assert main(["adapter", "upload", "--json", *folders]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [adapter["name"] for adapter in document["adapters"]] == ["good"]
    (failure,) = document["failed"]
    assert failure["directory"] == folders[1]
    assert failure["error"]["field"] == "use_dora"


def test_a_local_fault_alone_is_bad_usage(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """The server never said no: nothing was sent."""
    assert main(["adapter", "upload", str(tmp_path / "none")]) == 2
    assert "not a directory" in capsys.readouterr().err


def test_upload_takes_a_name_for_one_directory_only(
    server: FakeServer, capsys: Captured, tmp_path: Path
) -> None:
    """Two directories under one name: the second would silently replace the first."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("x", "y")]
    assert main(["adapter", "upload", folders[0], "--name", "other"]) == 0
    assert main(["adapter", "upload", *folders, "--name", "other"]) == 2
    assert [header.name for header in server.heard.headers] == ["other"]


def test_upload_stops_when_nobody_answers(capsys: Captured, tmp_path: Path) -> None:
    """A thousand directories would wait for a thousand connections."""
    folders = [str(make_peft_directory(tmp_path / name)) for name in ("x", "y")]
    assert main(["adapter", "upload", *folders, "--address", NOBODY]) == 3
    assert capsys.readouterr().err.count("can be reached") == 1


def test_list_show_and_delete(server: FakeServer, capsys: Captured) -> None:
    """Each prints what was asked, as a table and as JSON."""
    assert main(["adapter", "list", "--prefix", "a", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["adapters"]
    assert [adapter["name"] for adapter in listed] == ["a1", "a2", "a3"]
    assert main(["adapter", "list"]) == 0
    out = capsys.readouterr().out
    assert "b2" in out and "rounding" in out and "2.5e-04" in out
    assert main(["adapter", "show", "a1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_rank"] == 8
    assert main(["adapter", "show", "a1"]) == 0
    assert "q_proj" in capsys.readouterr().out
    assert main(["adapter", "delete", "a1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "a1", "version": 4}
    assert main(["adapter", "delete", "a1"]) == 0
    assert "version 4" in capsys.readouterr().out


def test_serve_without_flags_is_the_config_of_config_py() -> None:
    """A default typed twice would drift."""
    seen: list[ServerConfig] = []
    assert main(["serve", "--model", "x"], run_server=lambda config: seen.append(config) or 0) == 0
    assert seen == [ServerConfig(ModelConfig("x"))]


def test_every_serve_flag_reaches_its_own_field() -> None:
    """Two flags crossed over would pass a test that looks at some of them."""
    wanted = ServerConfig(
        ModelConfig(
            "m",
            "cuda:1",
            "bfloat16",
            101,
            3,
            kernels="triton",
            cuda_graphs=False,
            compile_layers=True,
        ),
        MemoryConfig(512 << 20, 3 * GIB // 2, 17),
        SchedulingConfig(5, 6, 77, 8.5, 9.5, 0.125, 11, False, "slora"),
        ServiceConfig(
            "0.0.0.0",
            1234,
            Path("s"),
            12.5,
            13,
            True,
            4096,
            tokens=Path("t"),
            tls_cert=Path("c"),
            tls_key=Path("k"),
            tls_client_ca=Path("ca"),
            behind_tls=True,
            metrics_host="::",
        ),
        debug=True,
    )
    flags = (
        "--model m --device cuda:1 --dtype bfloat16 --max-model-len 101 --threads 3 "
        "--kernels triton --no-cuda-graphs --compile-layers "
        "--pool-bytes 512MiB --host-bytes 1.5GiB --max-rank 17 --max-running 5 --max-waiting 6 "
        "--max-step-tokens 77 --max-bypass 8.5 --ttft 9.5 --tpot 0.125 --max-new-tokens 11 "
        "--host 0.0.0.0 --port 1234 --store s --drain 12.5 --metrics-port 13 --allow-remote "
        "--max-upload-bytes 4096 --tokens t --tls-cert c --tls-key k --tls-client-ca ca "
        "--behind-tls --metrics-host :: --debug --no-overlap --policy slora"
    )
    seen: list[ServerConfig] = []
    status = main(["serve", *flags.split()], run_server=lambda config: seen.append(config) or 0)
    assert status == 0
    assert seen == [wanted]
    default = ServerConfig(ModelConfig("x"))
    for part in ("model", "memory", "scheduling", "service"):
        ours, theirs = getattr(wanted, part), getattr(default, part)
        same = [name for name in ours.__slots__ if getattr(ours, name) == getattr(theirs, name)]
        assert same == [], "a field that keeps its default here is not tested"
    assert wanted == replace(wanted, debug=True)


def test_serve_returns_the_supervisors_status_and_tells_its_refusal(capsys: Captured) -> None:
    """A server that failed to start must not exit 0, nor with a traceback."""
    assert main(["serve", "--model", "x"], run_server=lambda config: 7) == 7

    def refuse(config: ServerConfig) -> int:
        raise EngineUnavailable("the engine did not start")

    assert main(["serve", "--model", "x"], run_server=refuse) == 1
    assert "the engine did not start" in capsys.readouterr().err


def test_sizes_read_and_write_back() -> None:
    """A size read wrongly by 1.024 is a pool that does not fit."""
    assert parse_size("4096") == 4096
    assert parse_size("512MiB") == 512 << 20
    assert parse_size("1.5 GiB") == 3 * GIB // 2
    for num_bytes in (0, 1, 1023, 1024, 3 << 20, GIB, 5 << 40, GIB + 1):
        assert parse_size(write_size(num_bytes)) == num_bytes
    assert write_size(2 * GIB) == "2GiB"


@pytest.mark.parametrize("text", ["", "GiB", "4GB", "4gib", "-1", "1e9", "4GiB4"])
def test_other_units_are_refused(text: str) -> None:
    """4GB read as 4GiB, or as 4, would be a silent mistake."""
    with pytest.raises(Exception, match="is not a size"):
        parse_size(text)


def test_bench_hands_its_arguments_on_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lorry bench demo --help` is the benchmark's help, not ours."""
    seen: list[list[str]] = []
    module = ModuleType("lorry.bench.demo")
    module.main = lambda argv: seen.append(argv) or 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lorry.bench.demo", module)
    assert "demo" in BENCHES
    assert main(["bench", "demo", "--help", "--rate", "3", "--", "x"]) == 5
    assert seen[0][:3] == ["--help", "--rate", "3"]


def test_the_address_is_the_clients_own_default() -> None:
    """The CLI repeats it so that its help need not import grpc."""
    assert cli_options.DEFAULT_ADDRESS == DEFAULT_ADDRESS


def test_help_imports_nothing_heavy() -> None:
    """torch or grpc behind `lorry --help` turns a tenth of a second into several."""
    code = (
        "import sys; from lorry.server.cli import main; status = main(['--help']); "
        "heavy = {'torch', 'grpc', 'google.protobuf', 'transformers', 'numpy', 'rich'}; "
        "print('heavy:', *heavy & set(sys.modules)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
    for command in ("serve", "generate", "info", "adapter", "bench"):
        assert command in done.stdout
