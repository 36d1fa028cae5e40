"""What is measured: the rows of a run, how many rounds each, and the sizes of the model's contexts.

Plain numbers. A row is a part (one cold request at a time, a burst, a sustained load of all
distinct adapters) on a link of one ratio, load(rank 64) / prefill(256): Toppings' S3 (ATC'25) is
the sustained one. Knows no server and no workload. Used by every file of this bench.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..slo.fleet import SHAPE

# Rows of labels: what each server is started with, and the all-cached ideal twice.
CACHED, WAIT, STREAM, ASSIST, AUTO = "cached", "wait", "stream", "assist", "auto"
AGAIN = "cached again"
SINGLE_WAYS = (WAIT, STREAM, ASSIST)
LABELS = (CACHED, *SINGLE_WAYS, AUTO, AGAIN)
IDEALS = frozenset({CACHED, AGAIN})  # everything is in their pools before a cell

SINGLE, BURST, S3, DISK = "single", "burst", "s3", "s3_disk"
PARTS = (SINGLE, BURST, S3, DISK)
OWN_LINK = 0.0  # ratio of a link that is not emulated: the device's own
MAIN_RATIO = 0.35  # of the rows whose names say none

RANK, PREFILL_TOKENS = 64, 256  # that the ratio is of
MAX_MODEL_LEN = 2304  # a prompt of 2,048 and its answer
COLD_SHAPE = replace(SHAPE, max_len=MAX_MODEL_LEN)
MAX_RUNNING = 48  # a burst of 32 and its bystanders at once
MAX_STEP_TOKENS = 512  # the prompt of 256 is one chunk, also beside those who decode
KV_TOKENS = 24_576  # that the pool has room for beside all adapters
LOAD = 0.5  # of the capacity: that Toppings' S3 offers, about
IN_FLIGHT = 8  # of the closed loop that measures the capacity

NUM_BYSTANDERS = 8
BYSTANDER_RANK, NUM_BYSTANDER_ADAPTERS = 16, 4
BYSTANDER_PROMPT = 16  # tokens
NUM_COLD_TOKENS = 8  # new ones, of a single cold request


@dataclass(frozen=True, slots=True)
class Point:
    """One cold request of the part `single`."""

    rank: int
    num_prompt_tokens: int


# The rank at one prompt, the prompt at one rank, and the corners.
FULL_POINTS = (
    *(Point(rank, 256) for rank in (8, 16, 32, 64, 128)),
    *(Point(64, tokens) for tokens in (32, 128, 512, 1024, 2048)),
    *(Point(rank, tokens) for rank in (8, 128) for tokens in (32, 1024)),
)
SHOWN_POINT = Point(64, 256)  # of the timeline


@dataclass(frozen=True, slots=True)
class Row:
    part: str
    ratio: float  # load(rank 64) / prefill(256) of the link; OWN_LINK: it is what it is
    num_rounds: int

    @property
    def name(self) -> str:
        """As results have it: the ratio only where it is not the main one."""
        is_main = self.ratio in (MAIN_RATIO, OWN_LINK)
        return self.part if is_main else f"{self.part}_ratio{self.ratio:g}"

    @property
    def is_disk_cold(self) -> bool:
        """Whether its adapters are not even in host memory."""
        return self.part == DISK


@dataclass(frozen=True, slots=True)
class Sizes:
    rows: tuple[Row, ...]
    num_s3: int  # requests of the sustained load, an adapter each
    num_burst: int  # cold requests of the burst
    points: tuple[Point, ...]
    num_bystander_tokens: int  # of each answer, in the part `single`
    num_burst_tokens: int  # of each bystander's answer beside a burst: it lasts longer than that
    num_prefills: int  # of 256 tokens, asked alone
    labels: tuple[str, ...] = LABELS

    @property
    def ratios(self) -> tuple[float, ...]:
        """In the order of the rows."""
        return tuple(dict.fromkeys(row.ratio for row in self.rows))


FULL = Sizes(
    rows=(
        *(Row(S3, 0.35, 3), Row(BURST, 0.35, 3), Row(DISK, 0.35, 1)),
        *(Row(S3, 1.0, 3), Row(SINGLE, 1.0, 2)),
        *(Row(S3, 0.1, 1), Row(S3, 3.0, 1)),
    ),
    num_s3=40,
    num_burst=32,
    points=FULL_POINTS,
    num_bystander_tokens=64,
    num_burst_tokens=256,
    num_prefills=9,
)
QUICK = Sizes(
    rows=(Row(S3, 0.35, 1), Row(BURST, 0.35, 1), Row(SINGLE, 0.35, 1)),
    num_s3=12,
    num_burst=8,
    points=(Point(64, 32), SHOWN_POINT, Point(8, 256)),
    num_bystander_tokens=32,
    num_burst_tokens=64,
    num_prefills=3,
    labels=LABELS[:-1],
)


def on_own_link(sizes: Sizes) -> Sizes:
    """On a device that has a link: every part once, at the ratio that it has."""
    parts = {row.part: row for row in sizes.rows}
    return replace(sizes, rows=tuple(replace(row, ratio=OWN_LINK) for row in parts.values()))
