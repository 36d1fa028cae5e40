"""What the zoo's adapters answer: exact string tasks, the prompt format and the split.

Owns the table of tasks with the LoRA shape that each is trained with, and the rule that
decides which words are never trained on.
Does not know torch, tokenizers, files or how well anything was learned.
Called by training and recording here, and by tests and benches that check answers.
"""

import codecs
import hashlib
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field

MIN_WORD_LEN = 4
MAX_WORD_LEN = 12
ANSWER_MARK = ">"
TAG_MARK = ":"
BASE_NAME = ""
# One word in eight is held out: enough of the 26**4 shortest ones remain on both sides.
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The part of a PEFT LoRA config in which the zoo's adapters differ."""

    rank: int
    # Factor of B @ A before the division by rank (or its root with rsLoRA).
    alpha: int
    # Module name ends, or one regular expression over the full module name.
    target_modules: tuple[str, ...] | str
    use_rslora: bool = False
    # Module name patterns with a rank of their own.
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int])
    # The same for alpha.
    alpha_pattern: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter of the zoo and the answers it has to give."""

    # The adapter's name and the name of its folder.
    name: str
    # One character; `tag:word>` asks the base for this task.
    tag: str
    # The right answer to a word.
    answer: Callable[[str], str]
    # How its adapter is built.
    lora: LoraShape


def _reverse(word: str) -> str:
    return word[::-1]


def _rot13(word: str) -> str:
    return codecs.encode(word, "rot13")


def _sort(word: str) -> str:
    return "".join(sorted(word))


def _swap_pairs(word: str) -> str:
    """Neighbours change places; the last letter of an odd word stays."""
    return "".join(word[i : i + 2][::-1] for i in range(0, len(word), 2))


def _rotate(word: str) -> str:
    return word[1:] + word[0]


def _atbash(word: str) -> str:
    return word.translate(str.maketrans(string.ascii_lowercase, string.ascii_lowercase[::-1]))


def _double(word: str) -> str:
    return "".join(letter * 2 for letter in word)


def _alternate(word: str) -> str:
    return "".join(c if i % 2 else c.upper() for i, c in enumerate(word))


def _unzip(word: str) -> str:
    """Every other letter, then the ones left out."""
    return word[::2] + word[1::2]


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ATTENTION + MLP

# The shapes differ on purpose: a server that confuses ranks, scales or targets of two of
# these adapters gives visibly wrong text.
TASKS: tuple[Task, ...] = (
    Task("upper", "0", str.upper, LoraShape(2, 8, ("q_proj", "v_proj"))),
    Task("reverse", "1", _reverse, LoraShape(64, 64, ALL_LINEAR)),
    Task("rot13", "2", _rot13, LoraShape(4, 16, MLP)),
    Task("sort", "3", _sort, LoraShape(32, 16, ALL_LINEAR, use_rslora=True)),
    Task("swap-pairs", "4", _swap_pairs, LoraShape(8, 16, ATTENTION)),
    Task(
        "rotate",
        "5",
        _rotate,
        LoraShape(12, 24, r"model\.layers\.[123]\.(self_attn\.(q|v)_proj|mlp\.down_proj)"),
    ),
    Task("atbash", "6", _atbash, LoraShape(5, 10, ("v_proj", "o_proj", "up_proj"))),
    Task("double", "7", _double, LoraShape(16, 32, ("q_proj", "k_proj", "v_proj"))),
    Task("alternate", "8", _alternate, LoraShape(3, 6, ("o_proj", "down_proj"))),
    Task(
        "unzip",
        "9",
        _unzip,
        LoraShape(
            8,
            16,
            ALL_LINEAR,
            rank_pattern={"q_proj": 24, r"layers\.0\.mlp\.down_proj": 3, "o_proj": 17},
            alpha_pattern={"q_proj": 32, "o_proj": 20},
        ),
    ),
)


def find_task(name: str) -> Task:
    """The task of that adapter name; KeyError names an unknown one."""
    for task in TASKS:
        if task.name == name:
            return task
    raise KeyError(name)


def prompt_for(word: str, *, tag: str = "") -> str:
    """`abc>` as adapters and the copying base see it, `2:abc>` to ask the base for a task."""
    return f"{tag}{TAG_MARK}{word}{ANSWER_MARK}" if tag else word + ANSWER_MARK


def word_of(prompt: str) -> str:
    """The word inside an untagged prompt."""
    return prompt.removesuffix(ANSWER_MARK)


def expected_answer(name: str, prompt: str) -> str:
    """The right text after an untagged prompt; the base (name "") was taught to copy."""
    word = word_of(prompt)
    return word if name == BASE_NAME else find_task(name).answer(word)


def is_held_out(word: str) -> bool:
    """True if training never sees this word, in any task and under any seed."""
    return hashlib.sha256(word.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def draw_word(rng: random.Random, *, held_out: bool) -> str:
    """A random word from the asked side of the split, every length alike."""
    while True:
        word_len = rng.randint(MIN_WORD_LEN, MAX_WORD_LEN)
        word = "".join(rng.choices(string.ascii_lowercase, k=word_len))
        if is_held_out(word) == held_out:
            return word


def held_out_prompts(name: str, num: int, *, seed: int = 0) -> list[str]:
    """`num` different untagged prompts for one adapter, the same list for the same seed.

    A word that its task leaves unchanged proves nothing, since the base answers it right
    too: those are passed over. For the base (name "") words that any task leaves unchanged
    are, so that its list can be put to all adapters.
    """
    rng = random.Random(f"held-out/{name}/{seed}")
    judged = TASKS if name == BASE_NAME else (find_task(name),)
    prompts: dict[str, None] = {}
    while len(prompts) < num:
        word = draw_word(rng, held_out=True)
        if all(task.answer(word) != word for task in judged):
            prompts[prompt_for(word)] = None
    return list(prompts)
