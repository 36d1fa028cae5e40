"""What the engine has to say after a step: events gathered, then sent as one report.

Knows no request and no adapter: those who write into it do. Used by engine.py, lives.py and
adapter_news.py.
"""

from __future__ import annotations

from .seam import EngineEnd, Event, Report


class Outbox:
    def __init__(self, end: EngineEnd) -> None:
        self._end = end
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def send(self) -> None:
        """One message for all; none when there is nothing to say."""
        if self._events:
            self._end.send(Report(tuple(self._events)))
            self._events = []
