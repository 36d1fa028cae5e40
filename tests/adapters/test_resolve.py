"""Modules, ranks and scales are PEFT's own answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lorry.adapters.errors import AdapterRefused
from lorry.adapters.fields import check_fields
from lorry.adapters.format import match_sites
from lorry.adapters.patterns import TRY_ALL
from lorry.adapters.resolve import ModuleRank, PeftResolver, Resolution
from lorry.tests.adapters_builders import SITES, make_config, make_meta_model, make_spec


def ask(resolver: PeftResolver, **changes: object) -> Resolution:
    return resolver.resolve(check_fields(make_config(**changes)))


def by_last_name(resolution: Resolution) -> dict[str, set[tuple[int, float]]]:
    found: dict[str, set[tuple[int, float]]] = {}
    for module in resolution.modules:
        last = module.name.rpartition(".")[2]
        found.setdefault(last, set()).add((module.rank, module.scale))
    return found


def test_list_names_modules_in_every_layer(resolver: PeftResolver) -> None:
    """The plainest adapter there is would miss a layer."""
    resolution = ask(resolver, r=4, lora_alpha=6)
    assert resolution.modules == tuple(
        ModuleRank(f"model.layers.{layer}.self_attn.{name}", 4, 1.5)
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    )


def test_all_linear_is_every_site_and_no_head(resolver: PeftResolver) -> None:
    """The output layer adapted, or a linear of the decoder left out."""
    resolution = ask(resolver, target_modules="all-linear")
    assert [module.name for module in resolution.modules] == [site.name for site in SITES]


def test_regex_picks_by_whole_name(resolver: PeftResolver) -> None:
    """A pattern searched instead of matched whole would adapt more than PEFT does."""
    resolution = ask(resolver, target_modules=r".*layers\.1\..*\.(up|down)_proj")
    assert [module.name for module in resolution.modules] == [
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    ]


def test_patterns_and_rslora_give_rank_and_scale(resolver: PeftResolver) -> None:
    """Ranks or scales of the default for all modules: weak answers and no error."""
    resolution = ask(
        resolver,
        target_modules=["q_proj", "k_proj", "up_proj"],
        r=4,
        lora_alpha=8,
        rank_pattern={"k_proj": 16, r"layers\.\d+\.mlp\.up_proj": 9},
        alpha_pattern={"k_proj": 2, "up_proj": 6.0},
        use_rslora=True,
    )
    assert by_last_name(resolution) == {
        "q_proj": {(4, 4.0)},
        "k_proj": {(16, 0.5)},
        "up_proj": {(9, 2.0)},
    }


def test_the_first_pattern_that_matches_counts(resolver: PeftResolver) -> None:
    """Two configs that differ in the order of a table had one answer: the wrong scale for one."""
    wide, narrow = ("q_proj", 64), ("layers.0.self_attn.q_proj", 1)
    scales: list[list[float]] = []
    for table in ([wide, narrow], [narrow, wide]):
        resolution = ask(resolver, target_modules=["q_proj"], r=4, alpha_pattern=dict(table))
        scales.append([module.scale for module in resolution.modules])
    assert scales == [[16.0, 16.0], [0.25, 16.0]]


def test_layers_and_exclusions_are_honoured(resolver: PeftResolver) -> None:
    """Layers the training left alone would be adapted by whatever is there."""
    resolution = ask(
        resolver,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[1],
        layers_pattern="layers",
        exclude_modules=["v_proj"],
    )
    assert [module.name for module in resolution.modules] == ["model.layers.1.self_attn.q_proj"]


def test_the_shape_is_left_as_it_was_and_asked_once() -> None:
    """The second adapter would be injected into the first; thousands would take minutes."""
    model = make_meta_model()
    before = [(name, type(module)) for name, module in model.named_modules()]
    resolver = PeftResolver(model)
    first = ask(resolver)
    assert ask(resolver) is first
    assert ask(resolver, lora_dropout=0.3, base_model_name_or_path="else") is first
    ask(resolver, target_modules="all-linear")
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_what_peft_warns_of_is_told(resolver: PeftResolver) -> None:
    """A pattern that matched nothing is a typing error its owner wants to hear of."""
    resolution = ask(resolver, rank_pattern={"q_prj": 2})
    assert any("q_prj" in note for note in resolution.notes)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"target_modules": ["c_attn"]}, "target_modules", "c_attn"),
        ({"target_modules": []}, "target_modules", "base"),
        ({"target_modules": ["input_layernorm"]}, "target_modules", "input_layernorm"),
        ({"target_modules": "(q_proj"}, "target_modules", "pattern"),
        ({"target_modules": "(q_proj|["}, "target_modules", "pattern"),
        ({"target_modules": "(" * 2000 + "q_proj" + ")" * 2000}, "target_modules", "recursion"),
        ({"rank_pattern": {"*q_proj": 4}}, "rank_pattern", r"'\*q_proj'.*no pattern"),
        ({"layers_pattern": ["layers"]}, "target_modules", "layers_to_transform"),
        ({"exclude_modules": ["q_proj", "v_proj"]}, "target_modules", "base"),
    ],
)
def test_a_config_that_means_nothing_is_refused(
    resolver: PeftResolver, changes: dict[str, object], field: str, words: str
) -> None:
    """An adapter that matches nothing would be served as the base (vllm#34186)."""
    with pytest.raises(AdapterRefused, match=words) as caught:
        ask(resolver, **changes)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_modules_outside_the_decoder_layers_are_refused_by_name(
    resolver: PeftResolver, name: str
) -> None:
    """Part of the adapter would be dropped in silence."""
    with pytest.raises(AdapterRefused, match=name) as caught:
        match_sites(ask(resolver, target_modules=["q_proj", name]), make_spec())
    assert caught.value.field == "target_modules"


def test_a_pattern_that_runs_for_hours_is_refused() -> None:
    """One upload would hang the store for everybody: Python cannot stop a match."""
    resolver = PeftResolver(make_meta_model(), match_limit_s=0.3)
    with pytest.raises(AdapterRefused, match=r"0\.3 s") as caught:
        ask(resolver, target_modules=r"(([a-z_.0-9])+)+!")
    assert caught.value.field == "target_modules"


def test_patterns_that_peft_compiles_anew_each_time_are_refused() -> None:
    """Each passes alone; PEFT would take minutes over them, holding up every other upload."""
    resolver = PeftResolver(make_meta_model(), match_limit_s=0.6)
    tables = {
        field: {f"{field}_{index}_[a-z]+(proj|norm)": 1 for index in range(256)}
        for field in ("rank_pattern", "alpha_pattern")
    }
    with pytest.raises(AdapterRefused, match=r"768 patterns.*0\.6 s"):
        ask(
            resolver,
            layers_to_transform=[0],
            layers_pattern=[f"layers_{index}_[a-z]+" for index in range(256)],
            **tables,
        )


def test_a_trial_keeps_no_other_config_waiting() -> None:
    """Hostile patterns, one after another, would stop all uploads for seconds each."""
    started = threading.Event()

    class Telling(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            started.set()
            return super().get(key, default)

    resolver = PeftResolver(make_meta_model(), match_limit_s=2.0)
    evil = Telling(check_fields(make_config(target_modules=r"(([a-z_.0-9])+)+!")))
    with ThreadPoolExecutor(1) as threads:
        trial = threads.submit(resolver.resolve, evil)
        assert started.wait(10)
        assert ask(resolver).modules
        assert not trial.done()
        with pytest.raises(AdapterRefused):
            trial.result()


def test_a_trial_ends_when_nobody_waits_for_it() -> None:
    """A store killed during a trial would leave a process behind that runs for ever."""
    work = {
        "patterns": [("fullmatch", r"(([a-z_.0-9])+)+!")],
        "names": ["model.layers.0.self_attn.q_proj"],
        "limit_s": 0.2,
        "memory": 1 << 30,
    }
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", TRY_ALL], stdin=subprocess.PIPE)
    child.communicate(json.dumps(work).encode(), timeout=30)
    assert child.returncode == -signal.SIGPROF
