"""How far a scoring run is, and how long it will go on."""

import time
from collections.abc import Callable, Mapping

SECONDS_BETWEEN_LINES = 10.0


class ScoringProgress:
    """Says now and then how many blocks are scored, how fast, and how much time the rest will take.

    The estimate is what the blocks have cost so far, by token, times the tokens to come: long captions and crowded
    images count for more. The first block is left out of it, for it also starts workers and the device.
    """

    def __init__(
        self,
        costs: Mapping[int, float],
        pairs: Mapping[int, int],
        *,
        note: str = "",
        clock: Callable[[], float] = time.perf_counter,
        say: Callable[[str], None] = print,
    ) -> None:
        """
        Args:
            costs: tokens and regions of all pairs of each block that this rank has to score.
            pairs: the number of its pairs.
            note: ends each line.
            clock: seconds.
            say: takes a line.
        """
        self.costs = costs
        self.pairs = pairs
        self.note = note
        self.clock = clock
        self.say = say
        self.left = sum(costs.values())
        self.blocks = 0
        self._start = 0.0
        self._last_line = float("-inf")
        self._measured_cost = 0.0
        self._measured_pairs = 0

    def add(self, number: int) -> None:
        """Notes that a block is scored, and may say a line."""
        now = self.clock()
        self.blocks += 1
        self.left -= self.costs[number]
        if self.blocks == 1:
            self._start = now
            return
        self._measured_cost += self.costs[number]
        self._measured_pairs += self.pairs[number]
        if now - self._last_line >= SECONDS_BETWEEN_LINES or self.blocks == len(self.costs):
            self._last_line = now
            self.say(self.line(now))

    def seconds_left(self, now: float) -> float:
        """The estimate; nan before two blocks are scored."""
        if not self._measured_cost:
            return float("nan")
        return self.left * (now - self._start) / self._measured_cost

    def line(self, now: float) -> str:
        """One line for a person."""
        rate = self._measured_pairs / max(now - self._start, 1e-9)
        rest = f"about {duration(self.seconds_left(now))} left" if self.blocks < len(self.costs) else "done"
        return f"scored {self.blocks:,} of {len(self.costs):,} blocks  {rate:,.0f} pairs/s  {rest}{self.note}"


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
