"""How the tokens of one request are to be chosen, as it travels from the wire to the sampler.

Plain data: the scheduler carries it and never looks inside. Checked at the front end's door
(rpc/request.py), obeyed by server/execution/sampler.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The inert values are the defaults. The order of application is transformers':
    bias, penalties, temperature, top-k, top-p, min-p; each on what the one before left.
    """

    temperature: float = 0.0  # 0: greedy, after bias and penalties
    seed: int = 0  # taken modulo 2**64
    top_k: int = 0  # of the most likely tokens; 0: all
    top_p: float = 1.0  # smallest set of this much probability; 1: all
    min_p: float = 0.0  # of the likeliest token's probability; 0: all
    repetition_penalty: float = 1.0  # divides what was seen, prompt included; 1: none
    presence_penalty: float = 0.0  # taken off once from what the answer has
    frequency_penalty: float = 0.0  # and once for each time the answer has it
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    # Log-probabilities are those of the model's own logits, before any of the above.
    logprobs: int = -1  # this many best beside each sampled token; -1: none at all
    prompt_logprobs: int = -1  # the same of each prompt token but the first

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on which tokens came before: the host counts their values."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token of prompt or answer, seen by the model's own distribution at its place."""

    token_id: int
    logprob: float  # natural logarithm
    # The most likely tokens and their log-probabilities, likeliest first; at most as many as asked.
    top: tuple[tuple[int, float], ...] = ()
