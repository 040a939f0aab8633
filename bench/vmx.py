"""What a VM exit costs that a VMM in Python handles through `fastmmu.vmx`, beside the kernel layer's.

    python bench/vmx.py [--exits N] [--runs R]

CPUID, which the VMM leaves out, and an EPT violation for each page, for which it writes an entry; median of the runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import fastmmu
from fastmmu.vmx import UNPAGED_GUEST, Cpu, Exit, ExitReason, Field, Op, Secondary, Vmcs

TABLES = 0x10000


def processor(pages: int) -> Cpu:
    """A guest over an EPT whose upper tables are there, and no entry of the lowest."""
    cpu = Cpu(fastmmu.PhysicalMemory(0x20000 + 8 * 512 * (pages // 512 + 1)))
    vmcs = Vmcs(cpu.memory, 0x1000)
    cpu.vmclear(vmcs)
    cpu.vmptrld(vmcs)
    cpu.vmwrite_all(UNPAGED_GUEST | {Field.EPTP: TABLES | 0x1E, Field.VPID: 1})
    cpu.vmwrite(Field.SECONDARY_CONTROLS, UNPAGED_GUEST[Field.SECONDARY_CONTROLS] | Secondary.VPID)
    words = cpu.memory.u64
    words[TABLES >> 3] = TABLES + 0x1000 | 7
    words[TABLES + 0x1000 >> 3] = TABLES + 0x2000 | 7
    for table in range(pages // 512 + 1):
        words[(TABLES + 0x2000 >> 3) + table] = 0x20000 + 0x1000 * table | 7
    cpu.vmlaunch()
    return cpu


def cpuids(n: int) -> float:
    cpu = processor(0)
    ops, sizes, addresses = np.full(n, Op.EXIT, np.uint8), np.zeros(n, np.uint8), np.full(n, 10, np.uint64)
    run, resume, skip, cpuid = cpu.run, cpu.vmresume, cpu.skip, ExitReason.CPUID
    start = time.perf_counter()
    stop = run(ops, sizes, addresses)
    while isinstance(stop, Exit) and stop.reason == cpuid:
        skip()
        resume()
        stop = run()
    return time.perf_counter() - start


def violations(n: int) -> float:
    cpu = processor(n)
    ops, sizes = np.full(n, Op.WRITE, np.uint8), np.full(n, 8, np.uint8)
    addresses = np.arange(n, dtype=np.uint64) << np.uint64(12)
    entries = memoryview(cpu.memory.u64)[0x20000 >> 3 :]
    run, resume, violation = cpu.run, cpu.vmresume, ExitReason.EPT_VIOLATION
    start = time.perf_counter()
    stop = run(ops, sizes, addresses)
    while isinstance(stop, Exit) and stop.reason == violation:
        gpa = stop.guest_physical
        entries[gpa >> 12] = gpa | 0x37
        resume()
        stop = run()
    return time.perf_counter() - start


def kernel(n: int) -> float:
    machine = fastmmu.Machine(fastmmu.Config(mmu="ept", vpid=True))
    start = time.perf_counter()
    machine.run(np.full(n, Op.EXIT, np.uint8), np.zeros(n, np.uint8), np.full(n, 10, np.uint64))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exits", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    ways = {
        "CPUID, kernel layer": kernel,
        "CPUID, run() and vmresume()": cpuids,
        "EPT violation, run() and vmresume()": violations,
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs):  # in turns
        for name, way in ways.items():
            spent[name].append(way(args.exits) / args.exits * 1e9)
    print(f"nanoseconds an exit, median of {args.runs}")
    inside = statistics.median(spent["CPUID, kernel layer"])
    for name, times in spent.items():
        print(f"{name:<40}{statistics.median(times):>8.0f}{statistics.median(times) - inside:>+8.0f}")


if __name__ == "__main__":
    main()
