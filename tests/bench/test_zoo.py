"""The zoo's promises: the split holds, the files are small, the recorded answers are real."""

import json
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lorry.bench.zoo import data, record
from lorry.bench.zoo.measure import answer_all
from lorry.bench.zoo.model import (
    BASE_LABEL,
    BOS_ID,
    EOS_ID,
    ZOO_DIR,
    adapter_dir,
    base_dir,
    load_adapter,
    load_base,
    load_tokenizer,
    make_base,
    make_tokenizer,
)
from lorry.bench.zoo.tasks import (
    BASE_NAME,
    MAX_WORD_LEN,
    MIN_WORD_LEN,
    TASKS,
    expected_answer,
    held_out_prompts,
    is_held_out,
    prompt_for,
    word_of,
)

# PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

TASK_NAMES = [task.name for task in TASKS]
WORD = re.compile(rf"[a-z]{{{MIN_WORD_LEN},{MAX_WORD_LEN}}}")


def read_config(name: str) -> dict[str, Any]:
    return json.loads((adapter_dir(name) / "adapter_config.json").read_text())


def weight_files() -> list[Path]:
    return sorted(ZOO_DIR.rglob("*.safetensors"))


def stored_weights(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", [BASE_NAME, *TASK_NAMES])
def test_held_out_prompts_are_held_out_and_prove_something(name: str) -> None:
    """A prompt seen in training, or one that copying answers right, would flatter an adapter."""
    prompts = held_out_prompts(name, 500)
    assert len(set(prompts)) == 500
    assert prompts == held_out_prompts(name, 500)
    assert prompts != held_out_prompts(name, 500, seed=1)
    for word in map(word_of, prompts):
        assert WORD.fullmatch(word)
        assert is_held_out(word)
        assert name == BASE_NAME or expected_answer(name, prompt_for(word)) != word


def test_training_never_draws_a_held_out_word() -> None:
    """The draw and the split are two functions: a swapped flag would train on the test."""
    rng = random.Random(0)
    prompts = [data.base_pair(rng)[0] for _ in range(1000)]
    prompts += [data.adapter_pair(rng, TASKS[0])[0] for _ in range(1000)]
    words = [word_of(prompt).rpartition(":")[2] for prompt in prompts]
    assert all(WORD.fullmatch(word) and not is_held_out(word) for word in words)


def test_tasks_differ() -> None:
    """Two adapters that often agree could be confused by a server without anyone seeing it."""
    prompts = held_out_prompts(BASE_NAME, 500)
    answers = [[expected_answer(name, prompt) for prompt in prompts] for name in TASK_NAMES]
    for some, others in combinations(answers, 2):
        assert sum(map(str.__eq__, some, others)) < 0.05 * len(prompts)
    for texts in answers:
        assert sum(map(len, texts)) >= 6 * len(texts)


def test_answers_have_known_examples() -> None:
    """The table itself is checked by hand-written answers, since all else is checked by it."""
    assert {name: expected_answer(name, "bacde>") for name in (BASE_NAME, *TASK_NAMES)} == {
        "": "bacde",
        "upper": "BACDE",
        "reverse": "edcab",
        "rot13": "onpqr",
        "sort": "abcde",
        "swap-pairs": "abdce",
        "rotate": "acdeb",
        "atbash": "yzxwv",
        "double": "bbaaccddee",
        "alternate": "BaCdE",
        "unzip": "bcead",
    }


def test_files_are_small_and_named_by_task() -> None:
    """The zoo travels with the source: a float32 file or a forgotten optimizer would show."""
    assert sum(path.stat().st_size for path in weight_files()) <= 6e6
    assert sum(weight.numel() for weight in make_base().parameters()) <= 3_000_000
    assert {path.parent.name for path in weight_files()} == {"base", *TASK_NAMES}
    for name in TASK_NAMES:
        names = {path.name for path in adapter_dir(name).iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("path", weight_files(), ids=lambda path: path.parent.name)
def test_weights_are_finite_bfloat16(path: Path) -> None:
    """Other weights than those measured would be shipped if rounding came after measuring."""
    for weight in stored_weights(path).values():
        assert weight.dtype == torch.bfloat16
        assert weight.isfinite().all()


def test_adapters_cover_the_shapes_a_server_must_know() -> None:
    """The table may change; these kinds of adapter have to stay in it."""
    configs = [read_config(name) for name in TASK_NAMES]
    ranks = {config["r"] for config in configs}
    assert len(configs) >= 8
    assert {2, 64} <= ranks
    assert any(rank % 2 for rank in ranks)
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] and config["alpha_pattern"] for config in configs)
    targets = [config["target_modules"] for config in configs]
    assert any(isinstance(target, str) for target in targets)
    sets = {frozenset(target) for target in targets if isinstance(target, list)}
    assert {len(names) for names in sets} >= {2, 3, 4, 7}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_config_is_plain_lora_as_the_table_says(task: Any) -> None:
    """The table and the trained files may drift apart; and no file may name a machine's path."""
    config = read_config(task.name)
    shape = task.lora
    assert (config["r"], config["lora_alpha"]) == (shape.rank, shape.alpha)
    assert config["use_rslora"] == shape.use_rslora
    assert config["rank_pattern"] == shape.rank_pattern
    assert config["alpha_pattern"] == shape.alpha_pattern
    targets = shape.target_modules
    expected = targets if isinstance(targets, str) else sorted(targets)
    assert config["target_modules"] == expected
    assert config["base_model_name_or_path"] == BASE_LABEL
    assert config["bias"] == "none"
    assert not config["use_dora"]
    assert not config["modules_to_save"]


def test_stored_ranks_follow_config() -> None:
    """`rank_pattern` has to reach the stored tensors, or it tests nothing."""
    found: dict[str, set[int]] = {}
    for key, weight in stored_weights(adapter_dir("unzip") / "adapter_model.safetensors").items():
        if ".lora_A." in key:
            site = key.partition(".layers.")[2].removesuffix(".lora_A.weight")
            label = "layer 0 down" if site == "0.mlp.down_proj" else site.rpartition(".")[2]
            found.setdefault(label, set()).add(weight.shape[0])
    assert found.pop("q_proj") == {24}
    assert found.pop("o_proj") == {17}
    assert found.pop("layer 0 down") == {3}
    assert set.union(*found.values()) == {8}


def test_tokenizer_is_one_token_a_byte() -> None:
    """Training writes byte values as ids itself; the shipped tokenizer must read them so."""
    text = "4:abc>CBA \n ü."
    tokenizer: Any = load_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids == [BOS_ID, *text.encode()]
    assert tokenizer.decode([*ids, EOS_ID], skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS_ID, EOS_ID)
    assert make_tokenizer()(text).input_ids == ids


def test_recorded_answers_are_right() -> None:
    """The demo compares a server's text with these: wrong ones would hide a wrong server."""
    answers = record.load_answers()
    tokenizer: Any = load_tokenizer()
    assert len(answers) == 64
    assert {answer.adapter for answer in answers} == {BASE_NAME, *TASK_NAMES}
    assert sum(answer.text == answer.expected for answer in answers) >= 62
    for answer in answers:
        assert answer.expected == expected_answer(answer.adapter, answer.prompt)
        assert is_held_out(word_of(answer.prompt))
        assert answer.token_ids[-1] == EOS_ID
        assert tokenizer.decode(answer.token_ids, skip_special_tokens=True) == answer.text
    assert len({len(answer.prompt) for answer in answers}) == MAX_WORD_LEN - MIN_WORD_LEN + 1


@pytest.mark.parametrize("name", [BASE_NAME, *TASK_NAMES])
def test_peft_repeats_a_recorded_answer(name: str) -> None:
    """Files retrained without recording again would leave stale answers behind."""
    answer = next(answer for answer in record.load_answers() if answer.adapter == name)
    model = load_base() if name == BASE_NAME else load_adapter(name)
    token_ids, _ = record.generate_ids(model, load_tokenizer(), answer.prompt)
    assert token_ids == answer.token_ids


def test_base_alone_fails_every_task() -> None:
    """If copying were right now and then, a server could drop an adapter unseen."""
    answers = [answer for answer in record.load_answers() if answer.adapter != BASE_NAME]
    texts = answer_all(load_base(), load_tokenizer(), [answer.prompt for answer in answers])
    assert not [a for a, text in zip(answers, texts, strict=True) if a.expected == text]


def test_readme_agrees_with_the_files() -> None:
    """Its table is pasted from what training prints: retraining must not leave an old one."""
    text = (ZOO_DIR / "README.md").read_text()
    sizes = {path.parent.name: path.stat().st_size for path in weight_files()}
    assert f"{sum(weight.numel() for weight in make_base().parameters()):,} parameters" in text
    assert f"All weights together: {sum(sizes.values()):,} bytes" in text
    for name in TASK_NAMES:
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"| `{expected_answer(name, 'fable>')}` |" in row
        assert row.endswith(f"| {sizes[name]:,} |")


def test_base_config_loads_in_float32() -> None:
    """The files hold bfloat16; a loader that kept it would compute other numbers."""
    config = json.loads((base_dir() / "config.json").read_text())
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert {weight.dtype for weight in load_base().parameters()} == {torch.float32}
