"""Quick walks (paging/quick_walk.pxd): every counter, cached translation, address and word of memory is what the walk
at length makes, whatever the caches hold; and most walks of a program that runs are quick."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, Machine, Op
from fastmmu.tlb.geometry import geometry

SMALL = Config(memory="128M")
TINY = {"l1d": "16/4", "l1i": "8/2", "stlb": "64/4"}
NATIVE, SHADOW = SMALL.replace(**TINY), SMALL.replace(mmu="shadow", **TINY)
EPT = SMALL.replace(mmu="ept", vpid=True, **TINY)


def caches(config: Config, **arrays: str) -> Config:
    return config.replace(tlb=geometry("skylake", **arrays))


CONFIGS = {
    "native": NATIVE,
    "native, few tables cached": caches(NATIVE, psc="1/2/3"),
    "native, none cached": NATIVE.replace(walk_caches=False),
    "shadow": SHADOW,
    "shadow+VPID": SHADOW.replace(vpid=True),
    "EPT": EPT.replace(vpid=False),
    "EPT+VPID": EPT,
    "EPT, few tables cached": caches(EPT, psc="1/2/3", epsc="2/2/2", gpm="3/fa"),
    "EPT, one mapping": caches(EPT, gpm="1/fa"),
    "EPT, wide": caches(EPT, psc="8/16/40", epsc="20/24/200", gpm="160/fa"),
    "EPT, mappings not cached": caches(EPT, gpm="off"),
    "EPT, mappings in the second level": caches(EPT, gpm="shared"),
    "EPT, one array of tables": caches(EPT, psc="24/fa", epsc="20/fa"),
    "EPT, no A/D flags": EPT.replace(ept_ad=False),
    "EPT, host pages of 2M": EPT.replace(host_pages="2m"),
    "EPT, PML": EPT.replace(pml=True),
    "EPT, premapped": EPT.replace(premapped=True),
    "EPT, THP": EPT.replace(pages="thp"),
    "EPT, processes with PCIDs": EPT.replace(pcid=True),
    "NPT": EPT.replace(vendor="amd"),
    "NPT, host pages of 2M": EPT.replace(vendor="amd", host_pages="2m"),
    "Ice Lake": SMALL.replace(mmu="ept", vpid=True, tlb="icelake"),
    "Zen 4": SMALL.replace(mmu="ept", vpid=True, tlb="zen4"),
    "strict": SMALL.replace(mmu="ept", vpid=True, tlb="strict"),
}
DATA = (Op.READ, Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH)
OTHER = (Op.SWITCH, Op.INVLPG, Op.INTERRUPT, Op.UNMAP)


def events(seed: int, n: int, pages: int, apart: int, others: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accesses of all kinds to a few pages often and `pages` others, so far `apart`; between them what is none."""
    rng = np.random.default_rng(seed)
    page = np.where(rng.random(n) < 0.3, rng.integers(0, 48, n), 512 + rng.integers(0, pages, n) * apart)
    addr = (0x100_0000_0000 + page * 4096 + rng.integers(0, 4096, n)).astype(np.uint64)
    op, size = rng.choice(DATA, n).astype(np.uint8), rng.choice([1, 8, 32], n).astype(np.uint8)
    for at, kind, process in zip(rng.integers(0, n, others), itertools.cycle(OTHER), itertools.count(), strict=False):
        op[at], size[at] = kind, 0
        addr[at] = {Op.SWITCH: process % 3, Op.INTERRUPT: 32}.get(kind, addr[at])
    return op, size, addr


def run(config: Config, of: tuple[np.ndarray, np.ndarray, np.ndarray], quick: bool) -> tuple[object, ...]:
    machine, out = Machine(config), np.zeros(len(of[0]), np.uint64)
    if not quick:
        machine.tlb._walk_at_length()
    machine.run(*of, out)
    assert quick or machine.tlb._quick_walks() == 0
    frames = machine.memory.u64.reshape(-1, 512)
    used = np.flatnonzero(frames.any(axis=1))
    return machine.counters(), machine.tlb.counters(), machine.tlb.entries(), out.tolist(), used, frames[used]


def same(config: Config, of: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for mine, theirs in zip(run(config, of, True), run(config, of, False), strict=True):
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs


@pytest.mark.parametrize("others", [0, 60])
@pytest.mark.parametrize("name", CONFIGS)
def test_they_do_what_walks_at_length_do(name: str, others: int) -> None:
    for seed, (pages, apart) in enumerate([(300, 1), (2000, 1), (400, 37), (60, 600)]):
        same(CONFIGS[name], events(seed, 6000, pages, apart, others))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.integers(0, 1 << 16),
    st.integers(1, 900),
    st.sampled_from([1, 3, 64, 512, 3000]),
    st.integers(0, 200),
    st.sampled_from([0, 1, 7, 50]),
)
def test_of_any_program(name: str, seed: int, pages: int, apart: int, others: int, exit_every: int) -> None:
    same(CONFIGS[name].replace(exit_every=exit_every), events(seed, 2500, pages, apart, others))


@pytest.mark.parametrize("name", ["native", "shadow", "shadow+VPID", "EPT", "EPT+VPID", "EPT, host pages of 2M"])
def test_most_walks_are_quick(name: str) -> None:
    machine, of = Machine(CONFIGS[name]), events(7, 40_000, 4000, 1, 0)
    for op in (Op.WRITE, Op.READ):  # every page is there, and dirty
        machine.run(np.full(4600, op, np.uint8), np.ones(4600, np.uint8), np.arange(4600, dtype=np.uint64) * 4096
                    + np.uint64(0x100_0000_0000))  # fmt: skip
    before, quick = machine.counters()["walks"], machine.tlb._quick_walks()
    machine.run(*of)
    walks = machine.counters()["walks"] - before
    assert machine.tlb._quick_walks() - quick > 0.95 * walks > 20_000
