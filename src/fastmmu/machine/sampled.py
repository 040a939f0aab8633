"""What a sampled run came to: counters of the intervals that were counted, and what they say of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastmmu.errors import ConfigError
from fastmmu.machine.estimates import Estimate, estimate
from fastmmu.machine.series import EXITS

__all__ = ["Sample", "Sampled"]


@dataclass(frozen=True)
class Sample:
    """How a run is sampled: of every `every` intervals, of `interval` accesses, one is counted, which `seed` says.
    warm_up: accesses before it that are run in full; None: all."""

    interval: int
    every: int
    seed: int = 0
    warm_up: int | None = None

    def __post_init__(self) -> None:
        if self.interval < 1 or self.every < 1:
            raise ConfigError(
                f"interval={self.interval}, sample_every={self.every}: give 1 or more accesses, and intervals"
            )
        if self.seed < 0 or (self.warm_up or 0) < 0:
            raise ConfigError(f"seed={self.seed}, warm_up={self.warm_up}: give 0 or more")

    def gaps(self) -> Iterator[int]:
        """Accesses before the first interval that is counted, then between each two."""
        random, left = np.random.default_rng(self.seed), 0
        while True:
            at = int(random.integers(self.every))
            yield (left + at) * self.interval
            left = self.every - 1 - at


class Sampled:
    """What a sampled run came to: ``Result.sample``.

    ``interval``: accesses of an interval; ``every``: one was counted of so many; ``accesses``: of the whole trace.
    ``counters``: name -> int64 (n,), of each interval that was counted; ``cycles``: float64 (n,). ``fed``: accesses
    that were run, the others touched no page in a new way.

    Threads: immutable; share it.
    """

    def __init__(
        self,
        sample: Sample,
        counters: dict[str, npt.NDArray[np.int64]],
        cycles: Sequence[float],
        accesses: int,
        fed: int,
    ) -> None:
        self.interval, self.every, self.seed, self.warm_up = sample.interval, sample.every, sample.seed, sample.warm_up
        self.counters, self.cycles = counters, np.array(cycles, np.float64)
        self.accesses, self.fed = accesses, fed

    def __len__(self) -> int:
        return len(self.cycles)

    def __repr__(self) -> str:
        return f"<Sampled {len(self):,} of {self.accesses // self.interval:,} intervals of {self.interval:,} accesses>"

    def estimate(self, name: str = "cycles", confidence: float = 0.95) -> Estimate:
        """Mean of a counter, or of the modelled cycles, an access, with its confidence interval.

        :param name: "cycles", a counter, or exits_REASON. :param confidence: that the interval holds the mean of all
            intervals of the trace.
        :raises ConfigError: no such counter; a confidence that is none.
        """
        if not 0 < confidence < 1:
            raise ConfigError(f"confidence={confidence} is not between 0 and 1; give 0.95")
        if name != "cycles" and name not in self.counters and not name.startswith(EXITS):
            raise ConfigError(f"no counter {name!r} in the sample; there are cycles, {', '.join(self.counters)}")
        none = np.zeros(len(self), np.int64)
        values = self.cycles if name == "cycles" else self.counters.get(name, none)
        found = estimate(values, confidence=confidence)
        return Estimate(*(None if each is None else each / self.interval for each in found))  # type: ignore[arg-type]
