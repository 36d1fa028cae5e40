"""One answer on its way out: tokens in, chunks and the final message out.

Owns the text of one of the `n` answers of a call: whole characters, held back where a stop string
may have begun, ended where one is complete. Knows neither gRPC's streams nor the engine's pipe;
generation.py moves what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...proto import lorry_pb2 as pb
from ..seam import Finish, Progress, Submit
from .cold import start_message
from .logprobs import wire_logprobs
from .stops import StopScan, StopStrings
from .text import Text

REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class Answer:
    """`submit` is what the engine was told; `arrived_s` when the call came."""

    def __init__(
        self, index: int, submit: Submit, *, text: Text, stops: StopStrings | None, arrived_s: float
    ) -> None:
        self.index = index
        self.submit = submit
        self.ttft_s = 0.0
        self._arrived_s = arrived_s
        self._token_bytes = text.token_bytes
        self._pieces = text.stream()
        self._scan = None if stops is None else stops.scan()
        # Reads on over what is the text only if the answer ends there; None: nothing such is open.
        self._ahead: StopScan | None = None
        self._ahead_text: list[str] = []  # what came out of it
        self._num_tokens = 0  # that the client was given
        self._last_token = -1

    @property
    def stopped(self) -> bool:
        """A stop string is complete; what the engine says besides `Finish` is dropped."""
        return self._scan is not None and bool(self._scan.found)

    def take(self, progress: Progress, now_s: float) -> pb.Chunk | None:
        """None once the answer is over."""
        if self.stopped:
            return None
        if not self.ttft_s:
            self.ttft_s = now_s - self._arrived_s
        text, count = self._read(progress.token_ids)
        token_ids = progress.token_ids[:count]
        self._num_tokens += count
        if token_ids:
            self._last_token = token_ids[-1]
        chunk = pb.Chunk(text=text, token_ids=token_ids, index=self.index)
        if progress.logprobs:
            chunk.logprobs.extend(wire_logprobs(progress.logprobs[:count], self._token_bytes))
        return chunk

    def end(self, finish: Finish) -> Iterator[pb.GenerateResponse]:
        """What was held back, if anything, then the final message."""
        if rest := self._rest():
            yield pb.GenerateResponse(chunk=pb.Chunk(text=rest, index=self.index))
        yield pb.GenerateResponse(final=self._final(finish))

    def reason(self, finish: Finish) -> str:
        """stop, length. The engine may have come to the length while it was told to stop."""
        return "stop" if self.stopped else finish.reason

    def _read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text that is certain now, and how many of the tokens belong to the answer."""
        if self._scan is None:
            return self._pieces.push(token_ids), len(token_ids)
        certain: list[str] = []
        # One at a time: which token completes a stop string may not depend on how many came.
        for count, token in enumerate(token_ids, 1):
            text, self._scan = self._look(token, self._scan)
            certain.append(text)
            if self._scan.found:
                return "".join(certain), count
        return "".join(certain), len(token_ids)

    def _look(self, token: int, scan: StopScan) -> tuple[str, StopScan]:
        """The text that is certain now, and the scan to go on with. A stop string that is complete
        ends the answer, and what it was supposed in is certain with it.
        """
        text = self._pieces.push((token,))
        if text:
            self._ahead = None
            text = scan.push(text)
        if scan.found or not self._pieces.supposed:
            return text, scan
        if self._ahead is None:
            self._ahead, self._ahead_text = scan.copy(), []
        self._ahead_text.append(self._ahead.push(self._pieces.supposed))
        if not self._ahead.found:
            return text, scan
        return text + "".join(self._ahead_text), self._ahead

    def _rest(self) -> str:
        if self._scan is None:
            return self._pieces.finish()
        if self._scan.found:
            return ""
        return self._scan.push(self._pieces.finish()) + self._scan.rest()

    def _final(self, finish: Finish) -> pb.Final:
        timings = finish.timings
        adapter = self.submit.adapter
        final = pb.Final(
            reason=REASONS.get(self.reason(finish), pb.FINISH_REASON_UNSPECIFIED),
            usage=pb.Usage(
                prompt_tokens=finish.num_prompt_tokens,
                completion_tokens=self._num_tokens,
                preemptions=timings.num_preemptions,
                cached_tokens=finish.num_cached_tokens,
            ),
            timing=pb.Timing(
                queue_s=timings.queue_s,
                load_s=timings.load_s,
                prefill_s=timings.prefill_s,
                ttft_s=self.ttft_s,
                tpot_s=tpot_s(finish),
            ),
            seed=self.submit.sampling.seed,
            adapter_version=0 if adapter is None else adapter.key.version,
            index=self.index,
        )
        if finish.start is not None:
            final.usage.cold_start.CopyFrom(start_message(finish.start))
        if self._scan is not None and self._scan.found:
            final.stop_string = self._scan.found
        elif finish.reason == "stop" and self._last_token in self.submit.stop_ids:
            final.stop_token_id = self._last_token
        return final


def tpot_s(finish: Finish) -> float:
    """Over all tokens the engine made, those that crossed a stop included."""
    num_gaps = finish.num_new_tokens - 1
    return finish.timings.decode_s / num_gaps if num_gaps > 0 else 0.0
