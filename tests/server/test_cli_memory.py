"""`lorry info --memory`: what is shown, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.server.cli import main
from lorry.tests.proto_builders import FakeServer

MODELS = Path(__file__).parents[2] / "bench" / "memory" / "models"
GEMMA = str(MODELS / "gemma3-1b.json")
TINY = str(MODELS.parents[1] / "zoo" / "base")

Captured = pytest.CaptureFixture[str]


def test_a_config_is_reckoned_without_a_server(capsys: Captured) -> None:
    """Gemma3-1B by hand: 26 layers of one KV head of 256; 6.2 MiB for four units of rank."""
    asked = ["--ranks", "4,64", "--adapters", "3", "--pool-bytes", "1GiB"]
    assert main(["info", "--memory", "--model", GEMMA, *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    widths = (1152 + 1024) * 2 + (1152 + 256) * 2 + (1152 + 6912) * 3
    unit_bytes = 26 * widths * 2
    assert found["page_bytes"] == 26 * 2 * 1 * 16 * 256 * 2
    assert [one["weight_bytes"] for one in found["by_rank"]] == [4 * unit_bytes, 64 * unit_bytes]
    assert found["adapters"] == {"4": 2, "64": 1}, "ranks are taken in turn"
    assert found["slot_bytes"] == 64 * unit_bytes
    pages = [one["pages"] for one in found["by_rank"]]
    pool_pages = (1 << 30) // found["page_bytes"]
    assert found["kv_tokens"] == 16 * (pool_pages - 2 * pages[0] - pages[1])
    left = (1 << 30) - 3 * found["slot_bytes"]
    assert found["kv_tokens_padded"] == 16 * (left // found["page_bytes"])
    assert 0.99 < found["kv_room_vs_closed_form"] < 1


def test_a_server_is_asked_for_its_own_pages(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of some default in place of what is served; the head counted as a target."""
    with FakeServer() as server:
        monkeypatch.setenv("LORRY_ADDRESS", server.address)
        assert main(["info", "--memory", "--ranks", "16", "--adapters", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["page_bytes"], found["pool_pages"], found["sites"]) == (1 << 20, 64, 2)
    assert found["dtype"] == "float32"
    assert found["by_rank"][0]["weight_bytes"] == 16 * (64 + 512 + 64 + 64) * 4
    assert found["kv_tokens"] == 16 * (64 - 5)


def test_the_tables_name_model_ranks_and_both_ways(capsys: Captured) -> None:
    """A figure without what it is of."""
    assert main(["info", "--memory", "--model", GEMMA, "--targets", "q_proj,v_proj"]) == 0
    out = capsys.readouterr().out
    for text in ("Gemma3ForCausalLM", "q_proj,v_proj", "52 of 183", "24.0 GiB", "x padded"):
        assert text in out
    assert "32 slots, all as wide as rank 64" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "8"], "go with --memory"),
        (["--memory", "--model", TINY, "--ranks", "8,x"], "--ranks is '8,x'"),
        (["--memory", "--model", TINY, "--ranks", "0"], "1 to 4096"),
        (["--memory", "--model", TINY, "--targets", "q"], "'q' is no linear of this model"),
        (["--memory", "--model", TINY, "--dtype", "int8"], "--dtype is 'int8'"),
        (["--memory", "--model", "/nowhere"], "neither a folder with a config.json"),
        (["--memory", "--dtype", "float16"], "--dtype goes with --model"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40],
)
def test_what_does_not_fit_is_named(options: list[str], message: str, capsys: Captured) -> None:
    """An option that is dropped in silence answers another question."""
    assert main(["info", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
