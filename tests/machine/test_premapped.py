"""`premapped`: what is counted is what would be with all tables in place and nothing cached, first touches among it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine
from fastmmu.tlb.geometry import geometry
from tests.support.event_lists import ALL_SCHEMES, program

NAMES = ("tlb_misses", "stlb_hits", "l1d_misses", "l1i_misses", "walks", "guest_walk_refs", "ept_walk_refs",
         "ad_writes", "vm_exits", "guest_faults")  # fmt: skip
MORE_SCHEMES = [
    *ALL_SCHEMES,
    Config(mmu="ept", vendor="amd", kvm="6.1"),
    *(Config(mmu=mmu, vpid=True, kvm="6.1") for mmu in ("shadow", "ept")),  # type: ignore[arg-type]
]
GEOMETRIES = {
    "skylake": geometry("skylake"),
    "zen1": geometry("zen1"),
    "none": geometry("skylake", walk_caches=False),
    "small, shared": geometry("skylake", stlb="64/4", psc="1/1/2", epsc="1/1/2", gpm="shared"),
}


def counted(machine: Machine) -> dict[str, int]:
    tlb: dict[str, Any] = machine.tlb.counters()
    units = {
        f"{unit}.{name}": tlb[unit][name] for unit in ("psc", "epsc", "gpm") for name in ("lookups", "misses", "fills")
    }
    hits = {f"{unit}.{size}": n for unit in ("psc", "epsc", "gpm") for size, n in tlb[unit]["hits"].items()}
    return {**{name: machine.counters()[name] for name in NAMES}, **units, **hits}


def events(seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Accesses of a program, and pages far apart, so that tables are touched for the first time, too."""
    (batch,) = program(1500, seed).batches()
    chance = np.random.default_rng(seed)
    far = (chance.integers(1, 1 << 30, 500, np.uint64) << np.uint64(12)) + np.uint64(0x100_0000_0000)
    far = chance.choice(far, 1500)
    op = np.concatenate([batch.op, chance.integers(0, 3, len(far)).astype(np.uint8)])
    size, addr = np.concatenate([batch.size, np.ones(len(far), np.uint8)]), np.concatenate([batch.addr, far])
    order = chance.permutation(len(op))
    return op[order], size[order], addr[order]


@pytest.mark.parametrize("arrays", GEOMETRIES)
@pytest.mark.parametrize("pages", ["4k", "2m"])
@pytest.mark.parametrize("config", MORE_SCHEMES, ids=lambda config: f"{config.name} {config.vendor} {config.kvm}")
def test_the_tables_stand_before_the_first_access(config: Config, pages: str, arrays: str) -> None:
    """As the same accesses once more, of a machine that has touched all pages and then lost all that it had cached."""
    config = config.replace(pages=pages, memory="16G", tlb=GEOMETRIES[arrays])
    trace = events(7)
    premapped, twice = Machine(config.replace(premapped=True)), Machine(config)
    premapped.run(*trace)
    twice.run(*trace)
    twice.tlb.reset()
    before = counted(twice)
    twice.run(*trace)
    after = counted(twice)
    assert counted(premapped) == {name: after[name] - before[name] for name in after}
    assert premapped.counters()["walks"] > 300
