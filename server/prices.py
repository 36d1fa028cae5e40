"""What it costs to bring back what memory gives up: seconds, by the cost model as it is now.

Two questions: a page of somebody's beginning (computed anew), an adapter (loaded anew). They only
have to be comparable: the economy puts both into one order. Asked by the prefix cache and by
residency, joined by the process that builds them (engine_process.py, the simulator).
"""

from __future__ import annotations

from collections.abc import Callable

from ..adapters.key import AdapterCard, AdapterKey
from .scheduling.cost_model import NO_MODEL, CostModel
from .scheduling.step_work import StepWork

# Where nothing has been learnt yet: figures of a small model on a CPU and a disk in its cache.
# What matters is that neither is nothing, or whatever is of that kind would always go first.
UNKNOWN_TOKEN_S = 1e-3
UNKNOWN_LOAD_S, UNKNOWN_LOAD_S_PER_BYTE = 1e-3, 1e-9
RENEW_EVERY = 64  # questions

PROMPT_TOKENS = StepWork._fields.index("prompt_tokens")
PROMPT_PAIRS = StepWork._fields.index("prompt_pairs")


def unknown() -> CostModel:
    return NO_MODEL


def nowhere(key: AdapterKey) -> bool:
    del key
    return False


class Prices:
    """`model`: the newest one; `in_host`: whether an image is in host memory."""

    def __init__(
        self,
        tokens_per_page: int,
        *,
        model: Callable[[], CostModel] = unknown,
        in_host: Callable[[AdapterKey], bool] = nowhere,
    ) -> None:
        self._tokens_per_page = tokens_per_page
        self._ask, self._in_host = model, in_host
        self._model, self._num_asked = model(), 0

    def _newest(self) -> CostModel:
        """A price is asked for every page of a prompt, and the model learns a step at a time."""
        self._num_asked += 1
        if self._num_asked % RENEW_EVERY == 0:
            self._model = self._ask()
        return self._model

    def page_s(self, start: int) -> float:
        """To compute the page whose first token is `start`, in the middle of a prompt.

        The adapter's part is left out: it is small beside the base's, and a page's worth would
        have to know whose it is.
        """
        coefs_s, num_tokens = self._newest().step_coefs_s, self._tokens_per_page
        pairs = num_tokens * start + num_tokens * (num_tokens + 1) // 2
        seconds = coefs_s[PROMPT_TOKENS] * num_tokens + coefs_s[PROMPT_PAIRS] * pairs
        return seconds or UNKNOWN_TOKEN_S * num_tokens

    def reload_s(self, card: AdapterCard) -> float:
        """From wherever it is now."""
        return self._load_s(card, read=not self._in_host(card.key))

    def cross_s(self, card: AdapterCard) -> float:
        """From host memory, where it will be once it was loaded."""
        return self._load_s(card, read=False)

    def _load_s(self, card: AdapterCard, *, read: bool) -> float:
        seconds = self._newest().load_time_s(card.weight_bytes, read=read)
        return seconds or UNKNOWN_LOAD_S + UNKNOWN_LOAD_S_PER_BYTE * card.weight_bytes
