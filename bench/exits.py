"""VM exits handled in a second: in the kernel layer, and by a policy in Python that asks for the same.

    python bench/exits.py [--exits N] [--runs R]

Three causes: CPUID, an EPT violation for each page of a first pass over memory, and a shadow page fault for each; the
last two with the guest's own demand paging around them, as in every run. Counters must be equal both ways.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import numpy.typing as npt

import fastmmu

Events = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


class InPython(fastmmu.Policy):
    """Takes over the exits of this bench and has the kernel layer handle them."""

    def on_cpuid(self, machine: fastmmu.Machine, exit: fastmmu.Exit) -> fastmmu.Action:
        return machine.default()

    on_ept_violation = on_exception_nmi = on_cpuid


def cpuids(n: int) -> Events:
    cpuid = int(fastmmu.ExitReason.CPUID)
    return np.full(n, fastmmu.Op.EXIT, np.uint8), np.zeros(n, np.uint8), np.full(n, cpuid, np.uint64)


def first_pass(n: int) -> Events:
    va = np.uint64(1 << 40) + np.arange(n, dtype=np.uint64) * np.uint64(4096)
    return np.full(n, fastmmu.Op.WRITE, np.uint8), np.full(n, 8, np.uint8), va


def timed(config: fastmmu.Config, policy: fastmmu.Policy | None, events: Events) -> tuple[float, int, dict[str, int]]:
    machine = fastmmu.Machine(config, policy=policy)
    start = time.perf_counter()
    machine.run(*events)
    spent = time.perf_counter() - start
    counters = machine.counters()
    return spent, counters["vm_exits"], counters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exits", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    ept, shadow = fastmmu.Config(mmu="ept", vpid=True), fastmmu.Config(mmu="shadow", vpid=True)
    causes = {
        "CPUID": (ept, cpuids(args.exits)),
        "EPT violations": (ept, first_pass(args.exits)),
        "shadow page faults": (shadow, first_pass(args.exits // 4)),
    }
    print(f"median of {args.runs}; million exits a second")
    print(f"{'cause':<20}{'exits':>9}{'kernel':>9}{'Python':>9}{'one exit costs more by':>25}")
    for cause, (config, events) in causes.items():
        spent: dict[str, list[float]] = {"kernel": [], "Python": []}
        for _ in range(args.runs):
            inside = timed(config, None, events)
            outside = timed(config, InPython(), events)
            if inside[1:] != outside[1:]:
                raise SystemExit(f"{cause}: counters differ between the kernel layer and Python")
            spent["kernel"].append(inside[0])
            spent["Python"].append(outside[0])
        kernel, python = statistics.median(spent["kernel"]), statistics.median(spent["Python"])
        n = inside[1]
        print(
            f"{cause:<20}{n:>9}{n / kernel / 1e6:>9.2f}{n / python / 1e6:>9.2f}{(python - kernel) / n * 1e9:>22.0f} ns"
        )


if __name__ == "__main__":
    main()
