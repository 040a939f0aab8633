"""`python -m tests.agreement.vmms`: both VMMs, kernels and Python, on whole traces: every counter must be equal.

The bundled traces in the schemes of `fastmmu compare`, by the KVM of the slides and that of Linux 6.1, with and without
an APIC; system traces (FASTMMU_TRACES) in those of `fastmmu replay`, their dirty logs too. A line a run: exits, seconds
of each VMM. Fails where a counter differs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastmmu.machine.config import Config
from fastmmu.machine.simulate import simulate
from fastmmu.study.replay.run import replay_schemes
from fastmmu.study.schemes import COMPARE, REPLAY, TPR, Schemes
from fastmmu.trace import Trace, bundled, read_trace
from fastmmu.trace.system import SystemTrace
from fastmmu.trace.tpr import with_tpr
from tests.conformance import systems

VMMS = ("kernel", "python")


class Run(NamedTuple):
    """One trace in one scheme by both: VM exits, seconds of each, what differs: name, by the kernels, in Python."""

    trace: str
    scheme: str
    exits: int
    seconds: tuple[float, float]
    different: dict[str, tuple[Any, Any]]


def run(name: str, scheme: str, found: list[tuple[dict[str, Any], float]]) -> Run:
    (kernel, first), (python, second) = found
    different = {
        key: (kernel.get(key), python.get(key)) for key in kernel | python if kernel.get(key) != python.get(key)
    }
    return Run(name, scheme, kernel["vm_exits"], (first, second), different)


def programs(trace: Trace, schemes: Schemes = COMPARE) -> Iterator[Run]:
    """A trace of a program in every scheme with a VMM."""
    for (scheme, fields), kvm in itertools.product(schemes.items(), ("slides", "6.1")):
        if fields.get("mmu") in ("native", "agile"):  # which the VMM in Python has not
            continue
        found = []
        for vmm in VMMS:
            begun = time.perf_counter()
            config = Config(**{"mmu": "ept", "kvm": kvm, **fields, "vmm": vmm})
            result = simulate(trace, config)
            found.append((dict(result.counters), time.perf_counter() - begun))
        yield run(trace.name, f"{scheme}, {kvm}", found)


def tpr_traffic(trace: Trace) -> Iterator[Run]:
    """A trace of a program with Windows XP's traffic to the APIC, in every way to handle it."""
    schemes = {name: {"memory": "2G", "guest_handler": "irql", **fields} for name, fields in TPR.items()}
    yield from programs(with_tpr(trace, "winxp"), schemes)


def system(trace: SystemTrace) -> Iterator[Run]:
    """A system trace in every scheme with a VMM; pages in dirty logs are counted."""
    for scheme, fields in REPLAY.items():
        if fields["mmu"] in ("native", "agile"):
            continue
        found = []
        for vmm in VMMS:
            begun = time.perf_counter()
            (ran,) = replay_schemes(trace, [scheme], vmm=vmm)
            assert ran.found is not None, ran.why
            counters = {**ran.counters, "logged": ran.logged, "wrong": ran.found.wrong}
            found.append((counters, time.perf_counter() - begun))
        yield run(trace.name, scheme, found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.agreement.vmms", description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first N events of each trace")
    options = parser.parse_args(argv)
    begun = time.monotonic()
    runs = []
    found: list[Iterator[Run]] = []
    for path in bundled().values():
        trace = read_trace(path).head(options.limit or 1 << 62)
        found += [programs(trace), tpr_traffic(trace)]
    for path in systems.traces(systems.data_directory()) or systems.traces(systems.sample_directory()):
        whole = read_trace(path)
        assert isinstance(whole, SystemTrace)
        found.append(system(whole.head(options.limit or 1 << 62)))
    for each in itertools.chain.from_iterable(found):
        runs.append(each)
        kernel, python = each.seconds
        print(f"{each.trace:18} {each.scheme:30} {each.exits:>12,} exits {kernel:8.1f} s {python:8.1f} s "
              f"{each.different or 'equal'}", flush=True)  # fmt: skip
    equal = sum(not each.different for each in runs)
    print(f"both VMMs: {equal} of {len(runs)} runs equal, in {time.monotonic() - begun:.0f} s")
    return 0 if runs and equal == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
