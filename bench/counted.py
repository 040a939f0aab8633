"""What the gate counts: small runs of everything that has a hot loop, in one process under callgrind.

Each work is made, and run once unless it can run only once, before counting begins; its result is checked. Sizes and
seeds are fixed, and memory is small: callgrind has to map it.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastmmu
from bench import streams
from bench.spaces import Space
from fastmmu.study import tlb_curve
from fastmmu.trace import Trace, write_trace

CONFIG = fastmmu.Config(memory="512M", l1d="64/4", stlb="1536/12")
NATIVE, SHADOW, EPT = CONFIG, CONFIG.replace(mmu="shadow", vpid=True), CONFIG.replace(mmu="ept", vpid=True)


class Work(NamedTuple):
    """`call` does so many items; `check` looks at what it returned. `once`: it must not have run before."""

    name: str
    items: int
    call: Callable[[], object]
    check: Callable[[Any], bool] = bool
    once: bool = False


def len_is(n: int) -> Callable[[Any], bool]:
    return lambda found: len(found) == n


def leads_to(where: streams.U64, found: fastmmu.Translation) -> bool:
    return np.array_equal(found.pa, where)


def exits_are(n: int, machine: fastmmu.Machine, found: object) -> bool:
    return bool(machine.counters()["vm_exits"] == n)


def translations() -> Iterator[Work]:
    for pages, nested in ((512, False), (16_384, False), (16_384, True)):
        at = Space(pages, nested)
        va = at.addresses(20_000)
        out = fastmmu.translate(at.memory, at.state, va, eptp=at.eptp)

        kind, where = "nested" if nested else "native", at.physical(va)
        lookup = partial(fastmmu.translate, at.memory, at.state, va, eptp=at.eptp, out=out)
        yield Work(f"translate, {kind}, {pages} pages", len(va), lookup, partial(leads_to, where))
        if pages > 512:
            yield Work(
                f"mappings, {kind}", pages, partial(fastmmu.mappings, at.memory, at.state, at.eptp), len_is(pages)
            )
    at = Space(512, False)
    one = at.addresses(1)
    out = fastmmu.translate(at.memory, at.state, one)

    def short() -> bool:
        for _ in range(200):
            fastmmu.translate(at.memory, at.state, one, out=out)
        return True

    yield Work("translate, one address a call", 200, short)
    some = at.addresses(200).tolist()
    yield Work("walk", len(some), lambda: [fastmmu.walk(at.memory, at.state, va).pa for va in some])


def lookups() -> Iterator[Work]:
    for stream in (streams.hot, streams.zipf, streams.uniform):
        va = stream(50_000)
        tlb = fastmmu.TLB(fastmmu.geometry("skylake", l1d="64/4", stlb="1536/12"))
        yield Work(f"TLB, {stream.__name__}", len(va), partial(tlb.simulate, va))


def runs() -> Iterator[Work]:
    schemes = {"native": NATIVE, "shadow+VPID": SHADOW, "EPT+VPID": EPT}
    for cold, name in ((1_000, "held"), (20_000, "misses")):
        events = streams.reads(streams.held(50_000, cold))
        for scheme, config in schemes.items():
            machine = fastmmu.Machine(config.replace(premapped=True))
            machine.run(*events)
            yield Work(f"simulate, {scheme}, {name}", 50_000, partial(machine.run, *events))
    machine = fastmmu.Machine(EPT.replace(tpr="flexpriority"))
    machine.run(*streams.enable_apic())
    traffic = streams.tpr_traffic(20_000)
    machine.run(*traffic)
    yield Work("simulate, TPR traffic", 20_000, partial(machine.run, *traffic))


def write_all(machine: fastmmu.Machine, events: streams.Events) -> list[int]:
    """The pages of the log after these writes."""
    machine.run(*events)
    return machine.vmm.dirty_log(0).nonzero()[0].tolist()


def exits() -> Iterator[Work]:
    passes = {
        "EPT violation": EPT,
        "EPT violation, TLB of 98,304": EPT.replace(stlb="98304/12"),
        "EPT violation, strict TLB": EPT.replace(tlb="strict", l1d=None, stlb=None),
        "EPT violation, no guest paging": EPT.replace(pages="2m", host_pages="4k"),
        "shadow page fault": SHADOW,
    }
    for name, config in passes.items():
        events = streams.first_pass(1_000)
        probe = fastmmu.Machine(config)
        probe.run(*events)
        machine = fastmmu.Machine(config)
        n = probe.counters()["vm_exits"]
        yield Work(name, n, partial(machine.run, *events), partial(exits_are, n, machine), once=True)
    machine = fastmmu.Machine(EPT)
    yield Work("CPUID", 5_000, partial(machine.run, *streams.cpuids(5_000)), partial(exits_are, 10_000, machine))
    for name, config in {"write-protect": EPT, "PML": EPT.replace(pml=True)}.items():
        events = streams.first_pass(1_000)
        logged = fastmmu.Machine(config)
        logged.run(*events)
        logged.vmm.start_dirty_log(0)
        logged.vmm.dirty_log(0)
        yield Work(f"dirty log, {name}", 1_000, partial(write_all, logged, events), lambda found: len(found) >= 1_000)


def read(path: Path) -> list[int]:
    """How many events each batch has."""
    return [len(batch) for batch in fastmmu.read_trace(path).batches()]


def traces() -> Iterator[Work]:
    trace = Trace.from_arrays(streams.zipf(50_000), name="counted")
    curve = partial(tlb_curve, trace, l1_sets=(), l2_sets=(128,), limit=1 << 12, jobs=1)
    yield Work("TLB curve", 50_000, curve, lambda found: found.curves)
    longer = Trace.from_arrays(streams.zipf(200_000), name="counted")
    for suffix in (".lackey", ".arrow"):
        path = Path(tempfile.mkdtemp(prefix="fastmmu-bench-")) / f"trace{suffix}"
        write_trace(longer, path, compression=None)
        yield Work(f"reading {suffix}", 200_000, partial(read, path), lambda found: sum(found) == 200_000)


def others() -> Iterator[Work]:
    """No work of ours: where these take another number of instructions, counts of ours say nothing."""
    data = np.random.default_rng(1).integers(0, 1 << 40, 20_000, dtype=np.uint64)
    yield Work("NumPy alone", len(data), lambda: np.sort(data)[np.argsort(data)].cumsum(), len_is(len(data)))
    yield Work("Python alone", len(data), lambda: sorted({str(n): n for n in range(len(data))}))


def main() -> None:
    """Run all under callgrind; prints "name<tab>items" for each count that it dumps, in order."""
    counter = ctypes.CDLL(sys.argv[1])
    if not counter.count_running():
        sys.exit("this runs under valgrind: make bench-gate")
    gc.disable()
    for works in (translations, lookups, runs, exits, traces, others):
        for work in works():
            if not work.once:
                work.call()  # what is imported when it is used is imported now
            counter.count_begin()
            found = work.call()
            counter.count_end(work.name.encode())
            if not work.check(found):
                sys.exit(f"{work.name}: {str(found)[:200]} is not right")
            print(work.name, work.items, sep="\t", flush=True)


if __name__ == "__main__":
    main()
