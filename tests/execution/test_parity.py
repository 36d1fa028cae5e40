"""The tie rule's own test: it must let ties pass, count them, and nothing else."""

import pytest
import torch

from lorry.tests.execution_builders import greedy, make_prompt, tiny_llama
from lorry.tests.parity import assert_same_tokens


def test_equal_tokens_have_no_ties_and_wrong_ones_fail() -> None:
    """A helper that passes anything would make every parity test pass."""
    model, prompt = tiny_llama(), make_prompt(5)
    tokens = greedy(model, prompt)
    assert assert_same_tokens(model, prompt, tokens, tokens) == 0
    wrong = [*tokens[:3], (tokens[3] + 1) % 131, *tokens[4:]]
    with pytest.raises(AssertionError, match="token 3"):
        assert_same_tokens(model, prompt, wrong, tokens)
    with pytest.raises(AssertionError, match="without a tie"):
        assert_same_tokens(model, prompt, tokens[:-1], tokens)


def test_a_tie_is_counted() -> None:
    """Two tokens with the same row of the head have equal logits: either may be said."""
    model, prompt = tiny_llama(), make_prompt(5)
    (token,) = greedy(model, prompt, 1)
    twin = (token + 1) % 131
    with torch.no_grad():
        model.lm_head.weight[twin] = model.lm_head.weight[token]
    assert assert_same_tokens(model, prompt, [twin], [token]) == 1
    assert assert_same_tokens(model, prompt, [token], [twin]) == 1


def test_a_tie_does_not_excuse_a_short_answer() -> None:
    """An answer cut off behind a tie would pass as a different text."""
    model, prompt = tiny_llama(), make_prompt(5)
    tokens = greedy(model, prompt, 4)
    twin = next(token for token in range(131) if token not in tokens)
    with torch.no_grad():
        model.lm_head.weight[twin] = model.lm_head.weight[tokens[0]]
    after = greedy(model, [*prompt, twin], 3)
    assert assert_same_tokens(model, prompt, [twin, *after], tokens) >= 1
    with pytest.raises(AssertionError, match="4 were due"):
        assert_same_tokens(model, prompt, [twin, *after[:2]], tokens)
    stopped = assert_same_tokens(model, prompt, [twin], tokens, stop_ids={twin})
    assert stopped == 1
    with pytest.raises(AssertionError, match="6 were due"):
        assert_same_tokens(model, prompt, [twin, *after], tokens, max_new_tokens=6)
