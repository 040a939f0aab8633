"""What the event loop does where the TLB holds an access (`run_held`): as one look-up after the other does it, as event
by event, which is the way under the detector of missing flushes, and however a run is cut into calls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, Machine, Op
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

SMALL = Config(memory="128M")
CONFIGS = {
    "native": SMALL.replace(l1d="64/4", stlb="1536/12"),
    "shadow+VPID": SMALL.replace(mmu="shadow", vpid=True, l1d="16/4", stlb="64/4"),
    "EPT+VPID": SMALL.replace(mmu="ept", vpid=True, l1d="16/8", l1i="8/2", stlb="64/8"),
    "EPT, 2M": SMALL.replace(mmu="ept", pages="2m", host_pages="2m"),
    "EPT, premapped": SMALL.replace(mmu="ept", vpid=True, premapped=True, l1d="64/4", stlb="256/4"),
    "wide sets": SMALL.replace(l1d="64/32", stlb="96/48"),
    "strict": SMALL.replace(tlb="strict"),
    "Zen 4": SMALL.replace(mmu="ept", vpid=True, tlb="zen4"),
}
DATA = (Op.READ, Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH)


def pages(rng: np.random.Generator, n: int) -> npt.NDArray[np.uint64]:
    """Few pages often, three to a set, and many seldom: an address in each."""
    page = np.where(rng.random(n) < 0.9, rng.integers(0, 48, n), 512 + rng.integers(0, 300, n))
    return (0x100_0000_0000 + page * 4096 + rng.integers(0, 4096, n)).astype(np.uint64)


def run(config: Config, cuts: tuple[int, ...] = ()) -> tuple[object, ...]:
    """Accesses of all kinds, some across pages, and seldom what is none."""
    n, rng = 6000, np.random.default_rng(3)
    addr, op, size = pages(rng, n), rng.choice(DATA, n).astype(np.uint8), rng.choice([1, 8, 32], n).astype(np.uint8)
    for i, at in enumerate(rng.integers(0, n, 40)):
        op[at], size[at] = (Op.SWITCH, Op.INVLPG, Op.INTERRUPT)[i % 3], 0
        addr[at] = (i % 2, addr[at], 32)[i % 3]
    machine, out = Machine(config), np.zeros(n, np.uint64)
    for first, end in zip((0, *cuts), (*cuts, n), strict=True):
        machine.run(op[first:end], size[first:end], addr[first:end], out[first:end], first=first)
    counters = {name: n for name, n in machine.counters().items() if name not in ("uses_compared", "stale_uses")}
    return counters, machine.tlb.counters(), machine.tlb.entries(), out.tolist()


@pytest.mark.parametrize("exit_every", [0, 1, 3, 100])
@pytest.mark.parametrize("name", CONFIGS)
def test_calls_make_no_difference(name: str, exit_every: int) -> None:
    config = CONFIGS[name].replace(exit_every=exit_every)
    assert run(config, (1, 2, 700, 703, 5000)) == run(config)


@pytest.mark.parametrize("exit_every", [0, 1, 3, 100])
@pytest.mark.parametrize("mmu", ["native", "shadow", "ept"])
def test_the_detector_goes_event_by_event(mmu: str, exit_every: int) -> None:
    config = CONFIGS["strict"].replace(mmu=mmu, vpid=mmu != "native", exit_every=exit_every)
    assert run(config.replace(find_missing_flushes=True)) == run(config)


@pytest.mark.parametrize(
    ("l1d", "l1i", "stlb"),
    [("64/4", "128/8", "1536/12"), ("16/4", "8/2", "64/4"), ("24/6", "12/6", "80/10"), ("64/32", "16/4", "96/48")],
)
def test_it_finds_what_single_look_ups_find(l1d: str, l1i: str, stlb: str) -> None:
    """Natively, where all is mapped: each miss is one walk and one fill. A store would set D and walk again."""
    n, rng = 6000, np.random.default_rng(4)
    addr, op = pages(rng, n), rng.choice([Op.READ, Op.READ, Op.FETCH], n).astype(np.uint8)
    machine = Machine(SMALL.replace(premapped=True, l1d=l1d, l1i=l1i, stlb=stlb))
    machine.run(op, np.ones(n, np.uint8), addr)
    tlb, misses = TLB(geometry("skylake", l1d=l1d, l1i=l1i, stlb=stlb)), 0
    for la, access in zip(addr.tolist(), np.where(op == Op.FETCH, "x", "r").tolist(), strict=True):
        if tlb.lookup(la, access)[1] == 0:
            misses += 1
            tlb.fill(la, TLB.value(la & ~0xFFF), access)
    assert machine.counters()["walks"] == misses > 300
    mine, theirs = machine.tlb.counters(), tlb.counters()
    units = ("l1i", "l1d", "l2")
    assert {unit: mine[unit] for unit in units} == {unit: theirs[unit] for unit in units}
    assert [entry[:7] for entry in machine.tlb.entries() if entry[0] in units] == [
        entry[:7] for entry in tlb.entries() if entry[0] in units
    ]
