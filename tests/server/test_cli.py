"""The `lorry` command, run in this process against a recording server."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto.transport import DEFAULT_ADDRESS
from lorry.server import cli_options
from lorry.server.cli import BENCHES, _memory_rows, main  # pyright: ignore[reportPrivateUsage]
from lorry.server.cli_options import parse_size, write_size
from lorry.server.config import (
    MemoryConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
    ServiceConfig,
)
from lorry.server.errors import EngineUnavailable
from lorry.tests.proto_builders import TEXT, FakeServer

NOBODY = "127.0.0.1:1"
GIB = 1 << 30


Captured = pytest.CaptureFixture[str]


def test_generate_prints_the_answer_alone_on_stdout(server: FakeServer, capsys: Captured) -> None:
    """Text and figures on one stream could not be piped on."""
    arguments = ["--adapter", "upper", "--max-new-tokens", "5", "--seed", "3"]
    assert main(["generate", "prompt", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert "7 + 4 tokens, 5 of them cached, length" in err
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
        ["adapter", "prefetch", "x"],
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
        ["serve", "--model", "x", "--eviction", "random"],
        ["serve", "--model", "x", "--adapter-share", "0"],
        ["serve", "--model", "x", "--eviction", "split", "--adapter-share", "1"],
        ["serve", "--model", "x", "--tenant-share", "1.1"],
        ["serve", "--model", "x", "--link-bytes-per-s", "-1"],
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
    assert "17 cached, 59 free" in out
    for words in (
        "75.0% of adapters asked for found, 5 prefetches, 6 loads cancelled",
        "65.0% of prompt tokens found, 3 pages evicted, 4 tokens of preempted requests kept",
        "1.0 MiB of 4.0 MiB, 3.0 MiB at most; 12.5% of images found",
        "economy (span_turnovers 4)",
    ):
        assert words in out


def test_info_of_an_idle_server_has_no_rates() -> None:
    """Nothing divided by nothing is no hit rate; a cache that is off has found nothing either."""
    rows = dict(_memory_rows(pb.Info(), pb.Stats(memory=pb.Memory(eviction="lru"))))
    assert rows["prefix cache"] == "off"
    assert str(rows["pool"]).startswith("no adapters asked for yet, 0 prefetches")
    assert rows["eviction"] == "lru"


def test_info_json_has_both_answers(server: FakeServer, capsys: Captured) -> None:
    """64-bit counters must be numbers in JSON."""
    assert main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["info"]["num_pages"] == 64
    assert document["stats"]["tokens_decode_total"] == 2**40


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
        MemoryConfig(512 << 20, 3 * GIB // 2, 17, False, True, "split", 0.3, 0.4, False),
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
        "--no-prefix-cache --share-prefixes --eviction split --adapter-share 0.3 "
        "--tenant-share 0.4 --no-prefetch "
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
        # What is emulated on a CPU has a test of its own.
        assert same == (["link_bytes_per_s"] if part == "memory" else []), "a field not tested here"
    assert wanted == replace(wanted, debug=True)


def test_a_link_is_emulated_on_a_cpu_alone() -> None:
    """On a GPU a number would be measured that no link of it has."""
    seen: list[ServerConfig] = []
    flags = ["serve", "--model", "m", "--link-bytes-per-s", "1e9"]
    assert main(flags, run_server=lambda config: seen.append(config) or 0) == 0
    assert seen[0].memory == MemoryConfig(link_bytes_per_s=1e9)
    assert main([*flags, "--device", "cuda"], run_server=lambda config: 0) == 2


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
