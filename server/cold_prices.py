"""What the choice of a way is made by: prices that renew themselves, and who can help.

Owns their renewal and what is learnt of hand-overs. Chooses nothing: scheduling/cold_start.py does.
Made by cold_rooms.py; asked by the engine at each plan, and by residency's facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ..adapters.image import Site
from ..adapters.key import AdapterCard
from .clock import Clock, MonotonicClock
from .scheduling.cost_model import CostModel
from .scheduling.starts import HelpCosts, StartPrices, Way
from .stats import HelpersView

RENEW_EVERY = 16  # plans: the model learns a step at a time
NUM_KEPT = 16  # steps with hand-overs, by which one is priced
MAX_CHANGE = 4.0  # times what the calibration says, up or down
# Of the time: by so much may helped steps hold up those who decode in them; and saved up, at most.
HELD_UP, MAX_SLACK_S = 0.05, 0.05


class HelpNow:
    """Whether helpers may be asked for an adapter, as it is now. While none is up nobody is: a step
    that was to be assisted would stand still, with everyone in it, for a load that had just begun.
    """

    def __init__(self, helpers: HelpersView | None, heads: Collection[str]) -> None:
        self._helpers, self._heads = helpers, frozenset(heads)

    def __call__(self, card: AdapterCard) -> bool:
        if self._helpers is None or not self._heads.isdisjoint(card.target_modules):
            return False
        return self._helpers.stats().num_up > 0


class CallsShare:
    """Of the hand-overs that a step can have, those that an adapter needs: where it changes a site.
    By the names of its modules, so by layers alike.
    """

    def __init__(self, sites: Sequence[Site], groups: Sequence[Sequence[int]]) -> None:
        self._groups = [{sites[site].name.rpartition(".")[2] for site in one} for one in groups]

    def __call__(self, card: AdapterCard) -> float:
        changed = frozenset(card.target_modules)
        num_changed = sum([not changed.isdisjoint(names) for names in self._groups])
        return num_changed / len(self._groups) if num_changed else 1.0


class NewestPrices:
    """A cost model is asked for now and then, not for each plan. From the steps that had hand-overs
    is learnt what one takes (a helper's core has other work too, and the device computes while it
    is called: the calibration knows neither), and how long others have been held up.
    """

    def __init__(
        self,
        ways: frozenset[Way],
        model: Callable[[], CostModel],
        *,
        help_costs: HelpCosts,
        num_layers: int,
        helpers: HelpersView | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._ways, self._model = ways, model
        self._help, self._num_layers = help_costs, num_layers
        self._helpers, self._num_sent = helpers, _num_sent(helpers)
        self._timed_s = help_costs.call_s
        # (hand-overs, seconds that they took) of the last steps that had some.
        self._calls = deque([(help_costs.num_calls, help_costs.calls_s)], NUM_KEPT)
        self._clock = clock or MonotonicClock()
        self._asked_s, self._slack_s = self._clock.now_s(), MAX_SLACK_S
        self._num_asked, self._prices = 0, self._newest()

    def __call__(self) -> StartPrices:
        self._num_asked += 1
        if self._num_asked % RENEW_EVERY == 0:
            self._prices = self._newest()
        now_s = self._clock.now_s()
        earned_s = HELD_UP * (now_s - self._asked_s)
        self._asked_s, self._slack_s = now_s, min(self._slack_s + earned_s, MAX_SLACK_S)
        return replace(self._prices, slack_s=self._slack_s)

    def helped(self, longer_s: float) -> None:
        """A step with errands has taken so much longer than it would have without."""
        num_sent = _num_sent(self._helpers)
        num_new, self._num_sent = num_sent - self._num_sent, num_sent
        longer_s = max(longer_s, 0.0)
        self._slack_s -= longer_s
        if num_new > 0:
            self._calls.append((num_new, longer_s))
            # Of all together: a step with few of them says more of its own length than of theirs.
            call_s = sum(s for _, s in self._calls) / sum(n for n, _ in self._calls)
            call_s = min(max(call_s, self._timed_s / MAX_CHANGE), self._timed_s * MAX_CHANGE)
            self._help = replace(self._help, call_s=call_s)
            self._prices = self._newest()

    def _newest(self) -> StartPrices:
        return StartPrices(self._ways, self._model(), self._help, self._num_layers)


def _num_sent(helpers: HelpersView | None) -> int:
    return helpers.stats().num_sent if helpers else 0
