"""Traces: three formats read as their publishers write them, and what is wrong named by place.

The rows are ours, in those formats.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lorry.bench.workload.__main__ import main
from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.file import digest_of, read_workload
from lorry.bench.workload.fit import Scale
from lorry.bench.workload.make import make_workload, notes_of
from lorry.bench.workload.popularity import Zipf
from lorry.bench.workload.records import Workload
from lorry.bench.workload.settings import FromTrace, OfTrace
from lorry.bench.workload.tokens import prompt_ids
from lorry.bench.workload.traces import TraceFormat, read_trace
from lorry.tests.workload_builders import make_settings

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:01.2500000,300,20
2023-11-16 18:00:00.5000001,12,7
2023-11-16 18:01:00.5000001,40,0
2023-11-16 18:00:10.5000000,900,33
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 23:59:59+00:00,10,2
2024-05-11 00:00:01.500000+00:00,20,3
"""
BURSTGPT_1 = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,120,30,150,Conversation log
6,GPT-4,0,0,0,Conversation log
9,GPT-4,200,0,200,API log
15,ChatGPT,80,11,91,API log
"""
_LATER = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
)
BURSTGPT_3 = f"""{_LATER}
100.0,aa-1,4,GPT-4,50,10,60,Conversation log
101.5,,2,ChatGPT,9,4,13,API log
103.0,bb-2,3,GPT-4,51,11,62,Conversation log
107.0,aa-1,4,GPT-4,52,12,64,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 700, "output_length": 6, "hash_ids": [0, 3]}
{"timestamp": 3000, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 4]}
"""


def write(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def replay(path: Path, trace_format: TraceFormat, **changes) -> Workload:
    arrivals = FromTrace(str(path), trace_format)
    defaults = {"num_requests": 0, "rate_per_s": 0.0, "lengths": OfTrace(), "arrivals": arrivals}
    return make_workload(make_settings(**{**defaults, **changes}))


def lengths(workload: Workload) -> list[tuple[float, int, int]]:
    return [
        (request.at_s, request.num_prompt_tokens, request.num_new_tokens)
        for request in workload.requests
    ]


def test_azure_2023_is_sorted_begins_at_0_and_leaves_out_what_failed(tmp_path: Path) -> None:
    """Its instants have seven decimals."""
    workload = replay(write(tmp_path, AZURE_2023), "azure")
    assert lengths(workload) == [(0.0, 12, 7), (0.75, 300, 20), (10.0, 900, 33)]
    assert notes_of(workload)["trace_rows_left_out"] == 1


def test_a_trace_has_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    homes = [tmp_path / "here", tmp_path / "there"]
    digests: set[str] = set()
    for home in homes:
        home.mkdir()
        digests.add(digest_of(replay(write(home, AZURE_2023), "azure")))
    assert len(digests) == 1


def test_the_command_line_replays_a_trace(tmp_path: Path) -> None:
    """With adapters, popularity and ranks of a preset; then `lorry bench slo --workload`."""
    out = tmp_path / "w.jsonl"
    source = ["--trace", str(write(tmp_path, AZURE_2023)), "--format", "azure"]
    assert main(["--preset", "azure-conv", *source, "--out", str(out)]) == 0
    workload = read_workload(out)
    assert lengths(workload) == [(0.0, 12, 7), (0.75, 300, 20), (10.0, 900, 33)]
    assert len(workload.adapters) == 200
    with pytest.raises(SystemExit):
        main(["--preset", "cpu", "--trace", "t.csv"])


def test_azure_2024_has_zones_and_sometimes_no_decimals(tmp_path: Path) -> None:
    workload = replay(write(tmp_path, AZURE_2024), "azure")
    assert lengths(workload) == [(0.0, 10, 2), (2.5, 20, 3)]


def test_burstgpts_failures_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, BURSTGPT_1), "burstgpt")
    assert [(row.at_s, row.prompt_tokens, row.answer_tokens) for row in trace.rows] == [
        (0.0, 120, 30),
        (10.0, 80, 11),
    ]
    assert trace.num_left_out == 2


def test_burstgpts_later_release_names_conversations(tmp_path: Path) -> None:
    """All turns of one go to one adapter; what they share is not said, so nothing is."""
    workload = replay(write(tmp_path, BURSTGPT_3), "burstgpt", popularity=Zipf(0.0), seed=2)
    assert [(item.session, item.turn) for item in workload.requests] == [
        (0, 0),
        (-1, 0),
        (1, 0),
        (0, 1),
    ]
    for seed in range(8):
        requests = replay(write(tmp_path, BURSTGPT_3), "burstgpt", seed=seed).requests
        assert requests[0].adapter == requests[3].adapter
    assert workload.requests[0].prompt[0].seed != workload.requests[3].prompt[0].seed


def test_mooncakes_blocks_are_shared_beginnings(tmp_path: Path) -> None:
    first, second, third = replay(write(tmp_path, MOONCAKE), "mooncake").requests
    assert [piece.num_tokens for piece in first.prompt] == [512, 512, 76]
    assert (second.at_s, second.num_prompt_tokens, second.num_new_tokens) == (3.0, 700, 6)
    ids = [prompt_ids(item.prompt, vocab_size=5000) for item in (first, second, third)]
    assert ids[0][:512] == ids[1][:512]
    assert ids[0][512:520] != ids[1][512:520]
    assert ids[0][:1024] == ids[2][:1024]


def test_scaled_prompts_still_share_their_beginnings(tmp_path: Path) -> None:
    scale = Scale(prompt_factor=0.1, max_model_len=120)
    first, second, third = replay(write(tmp_path, MOONCAKE), "mooncake", scale=scale).requests
    assert first.prompt[0] == second.prompt[0] == third.prompt[0]
    assert [item.num_prompt_tokens for item in (first, second, third)] == [110, 70, 113]


def test_a_trace_is_stretched_to_the_wanted_rate(tmp_path: Path) -> None:
    workload = replay(write(tmp_path, AZURE_2023), "azure", rate_per_s=1.5)
    assert [request.at_s for request in workload.requests] == [0.0, 0.15, 2.0]
    some = replay(write(tmp_path, AZURE_2023), "azure", num_requests=2)
    assert lengths(some) == [(0.0, 12, 7), (0.75, 300, 20)]
    begun = replay(write(tmp_path, AZURE_2023), "azure", span_s=5.0)
    assert lengths(begun) == [(0.0, 12, 7), (0.75, 300, 20)]


def test_a_traces_instants_may_have_other_lengths(tmp_path: Path) -> None:
    default = make_settings().lengths
    workload = replay(write(tmp_path, AZURE_2023), "azure", lengths=default)
    assert lengths(workload) == [(0.0, 20, 5), (0.75, 20, 5), (10.0, 20, 5)]


def test_a_gzipped_trace_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode()))
    assert len(read_trace(path, "mooncake").rows) == 3
    path.write_bytes(gzip.compress(MOONCAKE.encode())[:-12])
    with pytest.raises(WorkloadError, match=r"trace\.jsonl\.gz"):
        read_trace(path, "mooncake")


@pytest.mark.parametrize(
    ("trace_format", "text", "says"),
    [
        ("azure", AZURE_2023.replace("300", "-3"), "line 2, column ContextTokens: '-3'"),
        ("azure", AZURE_2023.replace(",7", ",x"), "line 3, column GeneratedTokens: 'x'"),
        ("azure", AZURE_2023.replace("18:00:10.5", "25:00:10.5"), "line 5, column TIMESTAMP"),
        ("azure", AZURE_2023.replace(",33", ""), "line 5: 2 cells under 3 names"),
        ("azure", BURSTGPT_1, "line 1: no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("azure", AZURE_2023[:40], "no row"),
        ("burstgpt", BURSTGPT_1.replace("15,", "nan,"), "line 5, column Timestamp: 'nan'"),
        ("burstgpt", BURSTGPT_1.replace("80,11", "8.5,11"), "line 5, column Request tokens: '8.5'"),
        (
            "mooncake",
            MOONCAKE.replace("[0, 3]", "[0]"),
            "line 2, column hash_ids: 1 blocks for 700",
        ),
        ("mooncake", MOONCAKE.replace("[0, 3]", "[0, null]"), "line 2, column hash_ids"),
        ("mooncake", MOONCAKE.replace('"output_length": 7', '"out": 7'), "line 3, column output_"),
        ("mooncake", MOONCAKE[:-9], "line 3"),
        ("mooncake", "[]\n", "line 1: '\\[\\]' is no object"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_line_and_column(
    tmp_path: Path, trace_format: TraceFormat, text: str, says: str
) -> None:
    with pytest.raises(WorkloadError, match=f"trace.*{says}"):
        read_trace(write(tmp_path, text), trace_format)


def test_what_is_asked_of_a_trace_and_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE_2023)
    with pytest.raises(WorkloadError, match="num_requests 9: the trace has 3 rows"):
        replay(path, "azure", num_requests=9)
    with pytest.raises(WorkloadError, match="gone"):
        replay(tmp_path / "gone", "azure")
    with pytest.raises(WorkloadError, match="at one instant"):
        replay(write(tmp_path, "\n".join(AZURE_2023.split("\n")[:2])), "azure", rate_per_s=1.0)
