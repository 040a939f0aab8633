"""Machines of every kind that a checkpoint knows, and whether two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu import Config, Machine
from fastmmu.machine.checkpoint.machines import Stored, stored

__all__ = ["CONFIGS", "differences", "events", "gone_on", "mutated"]

APIC = {"memory": "1G", "guest_handler": "irql", "handler_length": 20}
CONFIGS = {
    "native": Config(),
    "native-pcid": Config(pcid=True, tlb="zen2", replacement="plru"),
    "native-random": Config(replacement="random:3", stlb="32/4"),
    "native-srrip": Config(replacement="lru,srrip", stlb="32/4"),
    "native-strict": Config(tlb="strict", find_missing_flushes=True),
    "native-trap": Config(tpr="trap", **APIC),
    **{f"shadow-{kvm}": Config(mmu="shadow", kvm=kvm) for kvm in ("slides", "5.10", "6.1", "6.12")},
    "shadow-vpid": Config(mmu="shadow", vpid=True, kvm="6.1", pcid=True, tlb="icelake", exit_log=64),
    "shadow-strict": Config(mmu="shadow", kvm="6.1", tlb="strict", find_missing_flushes=True),
    "shadow-limit": Config(mmu="shadow", kvm="6.1", table_pages=24),
    "shadow-python": Config(mmu="shadow", vpid=True, kvm="6.1", vmm="python"),
    "shadow-patch": Config(mmu="shadow", tpr="patch", **APIC),
    "shadow-amd": Config(mmu="shadow", vendor="amd", kvm="6.1"),
    **{f"ept-{kvm}": Config(mmu="ept", vpid=True, kvm=kvm) for kvm in ("slides", "5.10", "6.1", "6.12")},
    "ept-older": Config(mmu="ept", kvm="6.1", tdp_mmu=False, table_pages=24),
    "ept-no-ad": Config(mmu="ept", kvm="6.1", ept_ad=False),
    "ept-pml": Config(mmu="ept", kvm="6.1", pml=True),
    "ept-2m": Config(mmu="ept", vpid=True, kvm="6.1", pages="2m"),
    "ept-thp": Config(mmu="ept", vpid=True, kvm="6.1", pages="thp", thp_threshold=8, host_pages="4k"),
    "ept-shuffled": Config(mmu="ept", vpid=True, kvm="6.1", frames="shuffled:2", pages="thp", thp_threshold=8),
    "ept-khugepaged": Config(mmu="ept", vpid=True, kvm="6.1", pages="thp", thp="madvise+khugepaged:900/70"),
    "native-huge": Config(pages="thp", thp="always", frames="buddy:0.8:3"),
    "shadow-compacted": Config(
        mmu="shadow", kvm="6.1", pages="thp", thp="always+khugepaged:512/90", frames="buddy:1:3", defrag="always",
        unmovable=0.4,
    ),
    "ept-host-thp": Config(mmu="ept", vpid=True, kvm="6.1", pages="2m", host_thp="always", host_frames="buddy:0.5:3"),
    "native-buddy": Config(frames="buddy:0.8:3", pages="2m"),
    "shadow-reserve": Config(mmu="shadow", kvm="6.1", frames="reserve:64k+buddy:0.4"),
    "ept-contiguous": Config(mmu="ept", kvm="6.1", frames="contiguous+buddy:0.4", host_pages="4k"),
    "ept-nx": Config(mmu="ept", kvm="6.1", pages="2m", nx_huge_pages=True),
    "ept-premapped": Config(mmu="ept", vpid=True, premapped=True),
    "ept-high": Config(mmu="ept", vpid=True, kernel_memory="high"),
    "ept-exits": Config(mmu="ept", exit_every=37, exit_pages=4, exit_log=50),
    "ept-strict": Config(mmu="ept", vpid=True, kvm="6.1", tlb="strict", find_missing_flushes=True),
    "ept-clock": Config(mmu="ept", vpid=True, kvm="6.1", host_memory="1M"),
    "ept-lru": Config(mmu="ept", vpid=True, kvm="6.1", host_memory="1M", host_reclaim="lru", ept_ad=False),
    "ept-chirp": Config(mmu="ept", vpid=True, replacement="lru,chirp", stlb="32/4"),
    "ept-python": Config(mmu="ept", vpid=True, kvm="6.1", vmm="python"),
    "ept-apic": Config(mmu="ept", tpr="trap", **APIC),
    "ept-flexpriority": Config(mmu="ept", vpid=True, tpr="flexpriority", **APIC),
    "ept-apicv": Config(mmu="ept", vpid=True, kvm="6.1", tpr="apicv", **APIC),
    "native-clustered": Config(stlb="64/4", tlb_extension="clustered:8:32/4+range:4+pom:16k+prefetch:recency:4"),
    "native-stride": Config(stlb="64/4", tlb_extension="coalesced:8:32/4+prefetch:stride"),
    "ept-distance": Config(mmu="ept", vpid=True, stlb="64/4", tlb_extension="range:8+prefetch:distance"),
    "ept-markov": Config(mmu="ept", pages="2m", stlb="64/4", tlb_extension="skewed:64/4+prefetch:markov"),
    "ept-mix": Config(mmu="ept", vpid=True, pages="thp", stlb="none", tlb_extension="mix:64/4"),
    "npt-rehash": Config(mmu="ept", vendor="amd", pages="thp", stlb="none", tlb_extension="rehash:64/4"),
    "npt": Config(mmu="ept", vendor="amd", kvm="6.1"),
    "npt-asids": Config(mmu="ept", vendor="amd", kvm="6.1", asids=4, flush_by_asid=False, exit_every=50),
    "npt-trap": Config(mmu="ept", vendor="amd", tpr="trap", **APIC),
    "npt-python": Config(mmu="ept", vendor="amd", kvm="6.1", vmm="python"),
}  # fmt: skip
CONFIGS = {
    name: config if config.tpr else config.replace(memory="2G", host_memory=config.host_memory)
    for name, config in CONFIGS.items()
}
"""Every scheme, its variants, ways of handling the TPR, VMMs, and TLBs of every policy."""


Columns = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


def gone_on(machine: Machine, path: Path) -> Machine:
    """The machine by way of a file."""
    machine.save(path)
    return Machine.from_checkpoint(path)


def differences(one: Machine, other: Machine) -> list[Any]:
    """What is not the same of two machines: everything that a checkpoint has, bit for bit."""
    a, b = stored(one), stored(other)
    found: list[Any] = [] if a.header == b.header else ["header"]
    found += sorted(a.arrays.keys() ^ b.arrays.keys())
    for name in a.arrays.keys() & b.arrays.keys() - {"words"}:
        if not np.array_equal(a.arrays[name], b.arrays[name]):
            found.append(name)
    words = zip(a.header.names, a.arrays["words"].tolist(), b.arrays["words"].tolist(), strict=True)
    return found + [(name, x, y) for name, x, y in words if x != y]


def events(rng: np.random.Generator, n: int, config: Config) -> Columns:
    """Random events of a guest of this configuration: accesses that stay a while, switches, exits, APIC events."""
    from fastmmu.ops import Op

    regions = rng.integers(0, 1 << 34, 8, dtype=np.uint64) & ~np.uint64(0xFFFFFF)
    page = (rng.geometric(0.02, n) - 1).astype(np.uint64) << np.uint64(12)
    addr = regions[rng.integers(0, 8, n)] + page + rng.integers(0, 4000, n).astype(np.uint64)
    op = rng.choice([Op.READ, Op.WRITE, Op.FETCH, Op.MODIFY], n).astype(np.uint8)
    size = rng.choice([1, 4, 8], n).astype(np.uint8)
    _some(rng, n // 60, op, addr, Op.SWITCH, lambda k: rng.integers(0, 5, k))
    _some(rng, n // 60, op, addr, Op.EXIT, lambda k: rng.choice([10, 18], k))
    if config.tpr is not None:
        tpr, sites = 0x80 << 32, lambda k: rng.integers(0, 128, k) << 48
        _some(rng, n // 40, op, addr, Op.APIC_WRITE, lambda k: tpr | sites(k) | rng.integers(0, 6, k) << 4)
        _some(rng, n // 40, op, addr, Op.APIC_READ, lambda k: tpr | sites(k))
        _some(rng, n // 40, op, addr, Op.CR8_WRITE, lambda k: rng.integers(0, 8, k))
        _some(rng, n // 40, op, addr, Op.DEVICE_INTERRUPT, lambda k: rng.integers(0x30, 0xF0, k))
        _some(rng, n // 100, op, addr, Op.APIC_WRITE, lambda k: 0x380 << 32 | rng.integers(50, 500, k))  # the timer
    if config.kernel_memory == "high":
        for at in 2 * rng.choice(n // 2, n // 200, replace=False):
            op[at : at + 2] = Op.PLACE
            size[at], size[at + 1] = 0, 12
            addr[at], addr[at + 1] = addr[at] & ~np.uint64(0xFFF), np.uint64(int(rng.integers(0, 1 << 14)) << 12)
    return op, size, addr


def mutated(rng: np.random.Generator, found: Stored) -> Stored:
    """A checkpoint with a few numbers of it changed: to anything, to small ones, by a bit, to each other."""
    arrays = {name: array.copy() for name, array in found.arrays.items()}
    large = [name for name, array in arrays.items() if len(array)]
    for _ in range(int(rng.integers(1, 4))):
        array = arrays["words" if rng.random() < 0.4 else large[rng.integers(len(large))]]
        used = np.flatnonzero(array) if rng.random() < 0.7 else np.arange(len(array))
        at = rng.choice(used if len(used) else np.arange(len(array)))
        width = 8 * array.dtype.itemsize
        now, kind = int(array[at]), int(rng.integers(6))
        value = (
            int(rng.integers(0, 1 << 63)) * 2,
            int(rng.integers(0, 40)),
            -1 - int(rng.integers(0, 4)),
            now ^ 1 << int(rng.integers(width)),
            int(rng.choice(array)),
            now + int(rng.integers(-3, 4)),
        )[kind]
        array[at] = value & (1 << width) - 1
    if rng.random() < 0.1:
        name = large[rng.integers(len(large))]
        arrays[name] = np.ascontiguousarray(arrays[name][: rng.integers(len(arrays[name]))])
    return Stored(found.path, found.header, arrays)


def _some(rng: np.random.Generator, k: int, op: Any, addr: Any, what: int, value: Any) -> None:
    at = rng.choice(len(op), k, replace=False)
    op[at], addr[at] = int(what), value(k).astype(np.uint64)
