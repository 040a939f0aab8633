"""Data caches under every reference of a machine, beside the same run without them."""

from __future__ import annotations

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed

SCHEMES = {
    "native": fastmmu.Config(),
    "EPT+VPID": fastmmu.Config(mmu="ept", vpid=True),
    "shadow+VPID": fastmmu.Config(mmu="shadow", vpid=True),
}
TARGET = 3.0
"""Times the run without caches."""


@pytest.mark.benchmark(group="machine caches")
@pytest.mark.parametrize("trace", ["sqlite", "zstd", "misses"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_machine_caches(race: Race, scale: Scale, scheme: str, trace: str) -> None:
    n = scale.of(20_000, 2_000_000, 8_000_000)
    if trace == "misses":
        chance = np.random.default_rng(3)
        addr = chance.integers(0, 200_000 << 12, n, np.uint64)
        op, size = np.zeros(n, np.uint8), np.ones(n, np.uint8)
        config = SCHEMES[scheme].replace(premapped=True)
    else:
        batches = list(fastmmu.read_trace(fastmmu.trace.bundled()[trace]).head(n).batches())
        columns = ((getattr(batch, name) for batch in batches) for name in ("op", "size", "addr"))
        op, size, addr = (np.concatenate(list(column)) for column in columns)
        config = SCHEMES[scheme]
    plain, cached = fastmmu.Machine(config), fastmmu.Machine(config.replace(caches="skylake"))
    plain.run(op, size, addr)  # makes the tables
    cached.run(op, size, addr)

    def run() -> dict[str, int]:
        cached.run(op, size, addr)
        return cached.counters()

    race(run, len(op), [Rival("without caches", timed(lambda: plain.run(op, size, addr)), len(op))], target=TARGET)
