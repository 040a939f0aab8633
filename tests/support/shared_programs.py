"""Random programs of several vCPUs that share address spaces, in a scheme and on the specification."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np

from fastmmu import Config, Host
from fastmmu.machine.frame_plan import frame_plan, recorded_runs
from fastmmu.machine.thp_plan import thp_plan
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.reference.machine import Compaction, Cpus, Frames, Guest, PolicyFrames, Thp

__all__ = ["COUNTED", "Turn", "frames_of", "on_specification", "random_turns", "run_turns"]

Turn = tuple[int, int, list[tuple[int, int]] | None]
"""vCPU, CPU (natively that of the vCPU's number), events; None: it idles."""

COUNTED = (
    "shootdowns", "shootdown_ipis", "shootdown_preempted", "shootdown_marked", "shootdown_lazy", "shootdown_interrupts",
    "late_flushes", "cr3_flushes", "invlpgs", "invlpgbs", "tlbsyncs", "munmaps", "protects", "forks", "cow_copies",
    "write_rights", "collapses", "pages_touched", "thp_fault_alloc", "thp_fault_fallback", "thp_collapse_alloc_failed",
    "thp_split_pmd", "khugepaged_pages_scanned", "khugepaged_full_scans", "compact_stall", "compact_success",
    "compact_fail", "pgmigrate_success",
)  # fmt: skip
BASES = (0x4000_0000, 0x4020_0000, 0x7F00_0000_0000, 0x1F_FFE0_0000)


def random_turns(seed: int, n: int = 100, *, advice: bool = False) -> tuple[int, int, list[Turn]]:
    """vCPUs, CPUs, turns: accesses to few pages, munmap, mprotect, fork, collapse, changes of process, idling, vCPUs
    that move; `advice`: madvise, too."""
    random = Random(seed)
    vcpus = random.randint(2, 8)
    cpus = random.randint(1, vcpus)
    processes, free, recent = [0], 100, list[int]()
    turns: list[Turn] = [(vcpu, vcpu % cpus, [(Op.SWITCH, 0)]) for vcpu in range(vcpus) if random.random() < 0.9]
    for _ in range(n):
        vcpu = random.randrange(vcpus)
        cpu = vcpu % cpus if random.random() < 0.85 else random.randrange(cpus)
        if random.random() < 0.1:
            turns.append((vcpu, cpu, None))
            continue
        events: list[tuple[int, int]] = []
        for _ in range(random.randint(1, 12)):
            if random.random() < 0.3 or not recent:
                recent.append(random.choice(BASES) + (random.choice([0, 1, 2, 3, 4, 5, 40, 300, 511]) << 12))
            page = random.choice(recent[-5:])
            roll = random.random()
            if roll < 0.72:
                events.append((random.choice([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]), page + random.randrange(4088)))
            elif roll < 0.76:
                events.append((Op.SWITCH, random.choice([0, 0, *processes])))
            elif roll < 0.82:
                events.append((Op.UNMAP, page))
            elif roll < 0.96:
                op = random.choice([Op.MUNMAP, Op.MUNMAP, Op.PROTECT, Op.PROTECT, Op.UNPROTECT])
                events.append((op, page | random.choice([0, 0, 1, 4, 31, 32, 33, 34, 600])))
            elif roll < 0.98:
                events.append((Op.COLLAPSE, page))
                if advice:
                    op = random.choice([Op.MADVISE_HUGE, Op.MADVISE_HUGE, Op.MADVISE_NOHUGE])
                    events.append((op, (page & -(1 << 21)) | random.choice([511, 511, 1023, 30])))
            elif len(processes) < 5:
                events.append((Op.FORK, free))
                processes.append(free)
                free += 1
        turns.append((vcpu, cpu, events))
    return vcpus, cpus, turns


def run_turns(
    config: Config, vcpus: int, cpus: int, turns: list[Turn], omit: tuple[str, ...] = ()
) -> tuple[list[int], list[dict[str, int]], Host]:
    """Addresses of all accesses in their order, counters of each vCPU, the host."""
    native = config.mmu == "native"
    host, came = Host([(config, vcpus)], cpus=vcpus if native else cpus, omit=omit), list[int]()
    for number, (vcpu, cpu, events) in enumerate(turns):
        if events is None:
            host.idle(vcpu)
            continue
        op = np.array([op for op, _ in events], np.uint8)
        addr, out = np.array([addr for _, addr in events], np.uint64), np.zeros(len(events), np.uint64)
        host.run(vcpu, vcpu if native else cpu, op, np.ones(len(events), np.uint8), addr, out, number * 100)
        came += out[op <= LAST_ACCESS].tolist()
    counters = [host.counters(vcpu) for vcpu in range(vcpus)]
    return came, [{name: found[name] for name in COUNTED} for found in counters], host


def frames_of(config: Config) -> Frames | None:
    """The specification's frames of a configuration; None: in the order of first touch."""
    plan = frame_plan(config.frames)
    if plan.policy == "first-touch":
        return None
    return PolicyFrames(config.memory_bytes, plan.policy, unusable=None if plan.unusable < 0 else plan.unusable,
                        seed=plan.seed, group=1 << plan.group,
                        runs=tuple(recorded_runs(plan.path)) if plan.path else ())  # fmt: skip


def thp_of(config: Config) -> Thp | None:
    """The specification's policy of huge pages."""
    if config.thp is None:
        return None
    plan = thp_plan(config.thp)
    return Thp(plan.mode, pages=plan.pages, every=plan.every, none=plan.none)


def on_specification(config: Config, vcpus: int, turns: list[Turn]) -> tuple[list[int], list[dict[str, int]]]:
    """The same by fastmmu.reference.machine."""
    native = config.mmu == "native"
    cpus = Cpus(vcpus, method=config.shootdown, lazy_tlb=config.lazy_tlb, ceiling=config.flush_ceiling,
                pcid=config.pcid, native=native)  # fmt: skip
    frames = frames_of(config)
    compaction = None
    if config.defrag != "never":
        assert isinstance(frames, PolicyFrames)
        seed = frame_plan(config.frames).seed
        compaction = Compaction(frames, config.defrag, unmovable=config.unmovable, seed=seed)
    guest = Guest(cpus, nbytes=config.memory_bytes, pages=config.pages, thp_threshold=config.thp_threshold,
                  apic=config.tpr is not None, frames=frames, thp=thp_of(config), compaction=compaction)  # fmt: skip
    came: list[Any] = []
    for vcpu, cpu, events in turns:
        if events is None:
            cpus.idle(vcpu)
            continue
        guest.turn(vcpu, vcpu if native else cpu)
        found = [(op, guest.event(vcpu, op, addr)) for op, addr in events]
        came += [gpa for op, gpa in found if op <= LAST_ACCESS]
    return came, [{name: Counter(counted)[name] for name in COUNTED} for counted in cpus.counters]
