"""The tie rule: when two runs of one model may differ, and how often they did.

Two runs may choose different tokens only where the reference's own best logits are closer
than 1e-4 of the logit range. Used by every test that compares tokens with PEFT or a model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from lorry.bench.fuzz_world import TIE_SHARE


@torch.no_grad()
def assert_same_tokens(
    reference_model: Any,
    prompt_ids: Sequence[int],
    ours: Sequence[int],
    reference_tokens: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    stop_ids: Collection[int] = (),
) -> int:
    """Number of ties at which `ours` left the reference's path; 0 when the tokens are equal.

    After a tie the two answers are about different texts, so every later token of ours is
    judged by what the reference would say after our own tokens, and the end by its own rule: as
    long as was asked (the reference's length, unless a stop token ended that one early and
    `max_new_tokens` says more), or a token of `stop_ids`.
    """
    ours, reference_tokens = list(ours), list(reference_tokens)
    if ours == reference_tokens:
        return 0
    assert ours, f"no tokens; the reference has {reference_tokens}"
    ids = torch.tensor([[*prompt_ids, *ours]])
    logits = reference_model(input_ids=ids, use_cache=False).logits[0].float()
    pairs = zip(ours, reference_tokens, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))
    ties = 0
    for i, token in enumerate(ours):
        row = logits[len(prompt_ids) - 1 + i]
        gap = float(row.max() - row[token])
        limit = TIE_SHARE * float(row.max() - row.min())
        assert gap < limit, (
            f"token {i} is {token}, the reference says {int(row.argmax())}: its logits are "
            f"{gap:.3g} apart, a tie needs less than {limit:.3g}\n"
            f"ours      {ours}\nreference {reference_tokens}"
        )
        ties += int(i == same or (i > same and token != int(row.argmax())))
    # Every token is the reference's own choice: then only a tie explains the difference.
    assert ties > 0, f"lengths differ without a tie: {ours} against {reference_tokens}"
    whole = len(reference_tokens) if max_new_tokens is None else max_new_tokens
    stops = [i for i, token in enumerate(ours) if token in stop_ids]
    end = stops[0] + 1 if stops else whole
    assert len(ours) == end, f"{len(ours)} tokens after a tie, {end} were due: {ours}"
    return ties
