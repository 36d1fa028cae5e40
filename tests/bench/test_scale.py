"""What the scale bench makes of its figures, and the stores it is run on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load

from lorry.bench.machine import describe_machine
from lorry.bench.readme import RENDERERS
from lorry.bench.readme_scale import SCALE_PATH, render_scale
from lorry.bench.readme_tables import ReadmeError
from lorry.bench.scale import active, crossing, registered
from lorry.bench.scale.active import Active
from lorry.bench.scale.crossing import Crossing
from lorry.bench.scale.document import Parts, Report, figures, make_document, misses
from lorry.bench.scale.registered import Registered, in_turn
from lorry.bench.scale.sizes import FULL
from lorry.bench.scale.stock import (
    Kind,
    Template,
    draw_weights,
    one_site_of,
    prepare_store,
    read_template,
)
from lorry.server.execution.model import prepare_model
from lorry.tests.builders import AdapterSpec, load_reference, make_adapter, make_llama


def make_crossing(loading: tuple[float, ...]) -> Crossing:
    rows = (crossing.QUIET, crossing.LOADING)
    return Crossing(
        {crossing.QUIET: (0.01,) * 3, crossing.LOADING: loading},
        num_steps=dict.fromkeys(rows, (200,) * 3),
        num_asks=dict.fromkeys(rows, (160,) * 3),
        num_loads={crossing.QUIET: (0,) * 3, crossing.LOADING: (160,) * 3},
        loading_share=0.97,
        link_bytes_per_s=1.3e7,
    )


def make_report(
    *,
    many: tuple[float, ...] = (98.0, 96.0, 97.0),
    again: tuple[float, ...] = (101.0, 99.0, 100.0),
    start_s: float = 5.4,
    many_active: tuple[float, ...] = (92.0, 91.0, 93.0),
    loading: tuple[float, ...] = (0.0105, 0.0104, 0.0106),
    is_quick: bool = False,
) -> Report:
    few = (100.0, 100.0, 100.0)
    loops = Active(
        {active.FEW: few, active.MANY: many_active, active.AGAIN: again}, (150,), 900, 1000, 338
    )
    return Report(
        command="lorry bench scale",
        is_quick=is_quick,
        sizes=FULL,
        model="a Llama",
        setting={
            "flags": ["--threads", "1"],
            "rank": 8,
            "adapter_bytes": 700_000,
            "pool_adapters": 30,
            "prompts": "no two begin alike",
        },
        parts=Parts(
            Registered(
                {registered.FEW: few, registered.MANY: many, registered.AGAIN: again},
                {registered.FEW: (5.0, 5.2, 4.9), registered.MANY: (start_s,) * 3},
            ),
            loops,
            replace(loops, host_bytes_peak=225),
            make_crossing(loading),
        ),
        machine=describe_machine(),
        load_before=0.1,
        wall_s=600.0,
    )


def test_the_line_has_the_names_that_were_asked_for() -> None:
    """A ratio whose name says nothing of what is above would be read the wrong way round."""
    line = figures(make_report())
    assert line["throughput_10000_vs_5"] == pytest.approx(0.97)
    assert line["throughput_a_vs_a"] == pytest.approx((1 / 1.01, 1.01), abs=1e-3)
    assert line["startup_10000_extra_s"] == pytest.approx(0.4)
    assert line["throughput_2000_active_vs_5"] == pytest.approx(0.92)
    assert line["load_vs_quiet_p95_step"] == pytest.approx(1.05)
    assert line["host_bytes_peak"] == 900
    assert misses(make_report()) == []


@pytest.mark.parametrize(
    ("report", "key"),
    [
        (make_report(many=(90.0, 91.0, 92.0)), "throughput_10000_vs_5"),
        (make_report(start_s=6.1), "startup_10000_extra_s"),
        (make_report(many_active=(89.0, 88.0, 95.0)), "throughput_2000_active_vs_5"),
        (make_report(loading=(0.0112, 0.0113, 0.0105)), "load_vs_quiet_p95_step"),
    ],
    ids=str,
)
def test_a_missed_target_is_told(report: Report, key: str) -> None:
    """A run that misses and ends with 0 is a claim."""
    (told,) = misses(report)
    assert told.startswith(key)
    assert make_document(report)["misses"] == [told]
    assert misses(replace(report, is_quick=True)) == []


def test_equal_servers_that_differ_as_much_excuse_a_miss() -> None:
    """On a noisy machine 0.95 says nothing when the same server twice gives 0.94."""
    assert misses(make_report(many=(95.5,) * 3, again=(94.0, 103.0, 100.0))) == []


def test_turns_change_places() -> None:
    """Whoever always came first would always meet the machine in another state."""
    assert [in_turn("abc", idx)[0] for idx in range(4)] == ["a", "b", "c", "a"]
    assert sorted(in_turn("abc", 2)) == ["a", "b", "c"]


def test_weights_differ_by_seed_and_change_something() -> None:
    """Adapters of one content are one file: ten thousand of them would be none."""
    shapes = (("l.0.self_attn.q_proj.lora_A.weight", (4, 32)), ("b.lora_B.weight", (16, 4)))
    template = Template(b"{}", shapes)
    one, other = (load(draw_weights(template, seed)) for seed in (1, 2))
    assert all((one[name] != other[name]).any() for name, _ in shapes)
    assert {name: weight.shape for name, weight in one.items()} == dict(shapes)


def test_a_store_is_made_once_and_whole(tmp_path: Path) -> None:
    """Making ten thousand adapters at every run would take longer than measuring them, and half a
    store that was taken for a whole one would answer NOT_FOUND."""
    model_dir = make_llama(tmp_path / "model", hidden_size=32, intermediate_size=48)
    reference = load_reference(model_dir)
    spec = prepare_model(load_reference(model_dir)).image_spec
    modules = ("q_proj", "v_proj")
    folder = make_adapter(reference, tmp_path / "peft", AdapterSpec("t", 4, modules))
    template = read_template(folder)
    kinds = [Kind("hot", 2, template), Kind("idle", 3, one_site_of(template, "q_proj"))]
    told: list[str] = []
    home = prepare_store(tmp_path, model_dir, spec, kinds, tell=told.append)
    assert prepare_store(tmp_path, model_dir, spec, kinds, tell=told.append) == home
    assert len(told) == 1
    assert len(list((home / "blobs").iterdir())) == 5
    assert not list(tmp_path.glob("*.part"))


def test_readme_reads_the_file(tmp_path: Path) -> None:
    """Figures that are typed are figures that are not measured again."""
    assert render_scale(tmp_path / "none.json") == "not measured"
    assert RENDERERS["scale"] is render_scale and SCALE_PATH.name == "scale.json"
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(make_document(make_report())))
    told = render_scale(path)
    assert "| tokens/s, 10,000 registered / 5, the same 5 active | 0.970 |" in told
    assert "| tokens/s, 2,000 active / 5, a pool for 30 | 0.920 |" in told
    path.write_text(json.dumps(make_document(make_report(is_quick=True))))
    with pytest.raises(ReadmeError, match="quick"):
        render_scale(path)
