"""Sampled runs beside whole ones: how often the true mean lies in the stated interval, and what sampling saves.

python -m bench.sampling sqlite 1000 10          a bundled trace: accesses of an interval, one counted of so many
python -m bench.sampling 1e9 10000 100           phases of a made program
"""

from __future__ import annotations

import sys
import time

import numpy as np

from fastmmu import Config, Result, Trace, read_trace, simulate
from fastmmu.trace import bundled
from fastmmu.trace.identity import identified
from tests.support.phases import Phases
from tests.support.sampled import SEEDS, coverage


def skipping(trace: Trace, whole: Result, interval: int, every: int, warm_up: int, seeds: int) -> str:
    """The same of runs that leave out what touches no page in a new way; of the cycles."""
    hits, means, seconds, fed = 0, [], 0.0, 0
    truth = whole.cycles_per_access
    for seed in range(seeds):
        began = time.process_time()
        found = simulate(trace, whole.config, interval=interval, sample_every=every, warm_up=warm_up, seed=seed).sample
        seconds += time.process_time() - began
        assert found is not None
        mean, low, high = found.estimate()
        hits += low is not None and high is not None and low <= truth <= high
        means.append(mean)
        fed += found.fed
    bias, error = np.mean(means) / truth - 1, np.std(means) / truth / max(seeds, 2) ** 0.5
    return (
        f"warm-up {warm_up}: {fed / seeds / whole.counters['accesses']:.1%} run, in {hits} of {seeds} intervals; bias "
        f"{bias:+.2%} ± {error:.2%}; {seconds / seeds:.2f} s"
    )


def main(name: str, interval: int, every: int, seeds: int) -> None:
    trace = Phases(int(float(name))) if name[0].isdigit() else identified(read_trace(bundled()[name]))
    for config in (Config(), Config(mmu="ept", vpid=True)):
        if name[0].isdigit() and config.mmu == "native":
            continue
        simulate(trace.head(1000), config)
        began = time.process_time()
        whole = simulate(trace, config)
        seconds = time.process_time() - began
        series = simulate(trace, config, interval=interval).series
        assert series is not None
        found = coverage(series, every)
        stated = {what: hits for what, (hits, n) in found.items() if n == SEEDS}
        least, below = min(stated.values()), {what: hits for what, hits in stated.items() if hits < 94}
        print(f"{name}, {config.name}: {len(series):,} intervals of {interval:,}, one counted of {every}; whole run "
              f"{seconds:.2f} s")  # fmt: skip
        print(f"  cycles {found['cycles'][0]} of {found['cycles'][1]}; of {len(stated)} counters the least {least}, "
              f"mean {np.mean(list(stated.values())):.1f}; below 94: {below or 'none'}; not always stated: "
              f"{len(found) - len(stated)}")  # fmt: skip
        for warm_up in (0, interval, 10 * interval):
            print("  " + skipping(trace, whole, interval, every, warm_up, seeds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else SEEDS)
