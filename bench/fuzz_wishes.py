"""What the fuzzer's requests ask of their tokens, and whether the log-probabilities are right.

Owns the menu of sampling parameters and the books of what was told. Few dishes, so that
questions come twice and an answer can be compared with an earlier one. Used by fuzz_episode.py.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..server.scheduling.sampling import SamplingParams, TokenLogprobs
from ..server.seam import Progress, PromptLogprobs, Submit

MENU = (
    *[SamplingParams()] * 8,
    *[SamplingParams(temperature=0.8)] * 3,
    SamplingParams(temperature=1.2, top_k=5),
    SamplingParams(temperature=1.5, top_p=0.7),
    SamplingParams(temperature=1.5, min_p=0.1),
    SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(frequency_penalty=0.7, presence_penalty=0.3, logit_bias=((9, 4.0), (1, -100.0))),
    SamplingParams(temperature=0.9, frequency_penalty=-0.4, presence_penalty=1.1),
)
NUM_SEEDS = 3
LOGPROB_ERROR = 1e-3  # the logits of a tiny model differ by 1e-5 where sums are taken otherwise
NUM_LIKELIEST = (-1, -1, -1, -1, 0, 3)  # -1: no log-probabilities


def draw_sampling(rng: random.Random) -> SamplingParams:
    dish = rng.choice(MENU)
    return replace(
        dish,
        seed=rng.randrange(NUM_SEEDS) if dish.temperature else 0,
        logprobs=rng.choice(NUM_LIKELIEST),
        prompt_logprobs=rng.choice(NUM_LIKELIEST),
    )


def without_wishes(sampling: SamplingParams) -> SamplingParams:
    """The same but for what makes the engine look at token values."""
    return replace(
        sampling,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logprobs=-1,
        prompt_logprobs=-1,
    )


def is_filtered(sampling: SamplingParams) -> bool:
    """Whether it asks for more than a temperature."""
    plain = SamplingParams(temperature=sampling.temperature, seed=sampling.seed)
    return replace(sampling, logprobs=-1, prompt_logprobs=-1) != plain


def has_history(sampling: SamplingParams) -> bool:
    """Whether a preemption could make it forget or repeat something."""
    return sampling.needs_history or sampling.prompt_logprobs >= 0


class ToldBook:
    """What was told of each request; `hear` and `hear_prompt` say what is wrong, or nothing."""

    def __init__(self) -> None:
        self.answers: defaultdict[int, list[TokenLogprobs]] = defaultdict(list)
        self.prompts: defaultdict[int, list[TokenLogprobs]] = defaultdict(list)

    def hear(self, submit: Submit, progress: Progress) -> str:
        """Every token has its record if asked for, and the whole prompt was told before it."""
        if len(self.prompts[submit.request_id]) != num_to_tell(submit):
            return "a token came before its whole prompt was told"
        wanted = progress.token_ids if submit.sampling.logprobs >= 0 else ()
        self.answers[submit.request_id] += progress.logprobs
        told = tuple(one.token_id for one in progress.logprobs)
        return "" if told == wanted else f"{told} are told of, asked for {wanted}"

    def hear_prompt(self, submit: Submit, stretch: PromptLogprobs) -> str:
        told = self.prompts[submit.request_id]
        if stretch.first_position != len(told) + 1:
            return f"{stretch} comes after {len(told)} places"
        told += stretch.logprobs
        right = list(submit.prompt_ids[1 : len(told) + 1])
        fits = [one.token_id for one in told] == right and len(told) <= num_to_tell(submit)
        return "" if fits else f"{stretch} of the prompt {submit.prompt_ids}"


def num_to_tell(submit: Submit) -> int:
    return len(submit.prompt_ids) - 1 if submit.sampling.prompt_logprobs >= 0 else 0


def wrong_records(
    records: Sequence[TokenLogprobs], right_TV: Sequence[Sequence[float]], *, num_top: int
) -> list[str]:
    """`right_TV`: the log-probabilities at each record's place; what is off is said in words."""
    wrong: list[str] = []
    for record, right_V in zip(records, right_TV, strict=True):
        best = sorted(right_V, reverse=True)[:num_top]
        pairs = [(record.logprob, right_V[record.token_id])]
        pairs += [(value, right_V[token]) for token, value in record.top]
        pairs += [(value, there) for (_, value), there in zip(record.top, best, strict=True)]
        if not all(_agree(ours, theirs) for ours, theirs in pairs):
            wrong.append(f"{record}, PEFT's: {pairs}")
    return wrong


def _agree(ours: float, theirs: float) -> bool:
    """NaN agrees with nothing; -inf, a token that is ruled out, with itself."""
    return ours == theirs or abs(ours - theirs) <= LOGPROB_ERROR
