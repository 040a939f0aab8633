"""Which vCPUs flush what they have cached of an address space, and how they come to (arch/x86/mm/tlb.c of Linux 6.1,
kvm_flush_tlb_multi of its arch/x86/kernel/kvm.c, record_steal_time of KVM)."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

__all__ = ["Cpus"]

BROADCAST_PAGES = 8  # of one INVLPGB


class Owed(NamedTuple):
    """What the handler of a shootdown's interrupt does: pages by INVLPG, None: all; or the tables are given up."""

    pages: int | None
    leaves: bool


class Cpus:
    """The vCPUs of a machine, and the physical CPUs that they run on.

    mask: of each process the vCPUs that have its tables loaded. seen: of each vCPU the generation that it has flushed
    up to, by process; without PCIDs of the one that is loaded alone. counters: of each vCPU, by the names of
    ``fastmmu.counters``.
    """

    def __init__(
        self, n: int, *, method: str = "ipi", lazy_tlb: bool = True, ceiling: int = 33, pcid: bool = False,
        native: bool = False,
    ) -> None:  # fmt: skip
        self.method, self.lazy_tlb, self.ceiling, self.pcid, self.native = method, lazy_tlb, ceiling, pcid, native
        self.generation: defaultdict[int, int] = defaultdict(int)
        self.mask: defaultdict[int, set[int]] = defaultdict(set)
        self.current = [0] * n  # process that runs, or ran last
        self.lazy: set[int] = set()
        self.begun: set[int] = set()
        self.seen: list[dict[int, int]] = [{} for _ in range(n)]
        self.owed: list[list[Owed]] = [[] for _ in range(n)]
        self.place: dict[int, int] = {}  # vCPU -> physical CPU
        self.counters: list[Counter[str]] = [Counter() for _ in range(n)]

    def count(self, vcpu: int, name: str | None, n: int = 1) -> None:
        """Count."""
        if name is not None:
            self.counters[vcpu][name] += n

    # ---- who runs -------------------------------------------------------------------------------------------------

    def new(self, vcpu: int) -> bool:
        """Whether it has run nothing."""
        return vcpu not in self.begun

    def enter(self, vcpu: int, cpu: int) -> None:
        """It gets a physical CPU; who was there has none."""
        self.place = {other: at for other, at in self.place.items() if at != cpu}
        self.place[vcpu] = cpu

    def loaded(self, vcpu: int) -> int | None:
        """The process whose tables it has; None: the kernel's own, or it has not begun."""
        return self.current[vcpu] if vcpu in self.mask[self.current[vcpu]] else None

    def load(self, vcpu: int, process: int) -> None:
        """It loads the tables of a process (switch_mm_irqs_off)."""
        for mask in self.mask.values():
            mask.discard(vcpu)
        self.mask[process].add(vcpu)
        if self.pcid and self.seen[vcpu].get(process, self.generation[process]) != self.generation[process]:
            self.count(vcpu, "late_flushes")
        if not self.pcid:
            self.seen[vcpu].clear()
        self.seen[vcpu][process] = self.generation[process]
        self.current[vcpu] = process
        self.lazy.discard(vcpu)
        self.begun.add(vcpu)

    def switch(self, vcpu: int, process: int) -> None:
        """Another process, or the same one again."""
        self.load(vcpu, process)

    def resume(self, vcpu: int) -> None:
        """Before the first instruction of a turn: the interrupts that it owes; one that idled wakes."""
        process = self.current[vcpu]
        for owed in self.owed[vcpu]:
            self.count(vcpu, "shootdown_interrupts")
            if not owed.leaves:
                self.flush(vcpu, owed.pages)
        self.owed[vcpu].clear()
        if vcpu not in self.mask[process]:
            self.count(vcpu, "cr3_flushes")
            self.load(vcpu, process)
        if vcpu in self.lazy and self.seen[vcpu][process] != self.generation[process]:
            self.count(vcpu, "late_flushes")
            self.flush(vcpu, None)
            self.seen[vcpu][process] = self.generation[process]
        self.lazy.discard(vcpu)

    def idle(self, vcpu: int) -> None:
        """It has nothing to run (enter_lazy_tlb), and halts."""
        if vcpu not in self.place or vcpu not in self.begun:
            return
        self.resume(vcpu)
        if self.lazy_tlb:
            self.lazy.add(vcpu)
        else:
            self.mask[self.current[vcpu]].discard(vcpu)
            self.count(vcpu, "cr3_flushes")
        if not self.native:
            del self.place[vcpu]

    # ---- flushes --------------------------------------------------------------------------------------------------

    def flush(self, vcpu: int, pages: int | None) -> None:
        """Here."""
        self.count(vcpu, "cr3_flushes" if pages is None else "invlpgs", pages or 1)

    def shoot(self, vcpu: int, process: int, pages: int | None, freed_tables: bool) -> None:
        """Rights are gone: here, where the process runs here, and on all that have the tables (flush_tlb_mm_range)."""
        if pages is not None and pages > self.ceiling:
            pages = None
        if process == self.current[vcpu]:
            self.flush(vcpu, pages)
        self.generation[process] += 1
        if process == self.current[vcpu]:
            self.seen[vcpu][process] = self.generation[process]
        if self.method == "invlpgb":
            self.broadcast(vcpu, process, pages)
            return
        others = sorted(self.mask[process] - {vcpu})
        spared = [other for other in others if other in self.lazy and not freed_tables]
        self.count(vcpu, "shootdown_lazy", len(spared))
        told = [other for other in others if other not in spared]
        self.count(vcpu, "shootdowns", bool(told))
        for other in told:
            if self.method == "pv" and not self.native and other not in self.place:
                self.count(vcpu, "shootdown_marked")
                continue
            missed = self.seen[other][process] + 1 != self.generation[process]
            self.owed[other].append(Owed(None if missed else pages, other in self.lazy))
            if other in self.lazy:  # it gives the tables up, and flushes nothing
                self.mask[process].discard(other)
            else:
                self.seen[other][process] = self.generation[process]
            self.count(vcpu, "shootdown_ipis")
            self.count(vcpu, "shootdown_preempted", not self.native and other not in self.place)

    def broadcast(self, vcpu: int, process: int, pages: int | None) -> None:
        """AMD: all that may have cached something of it, whatever they run (INVLPGB, TLBSYNC)."""
        found = False
        for other, seen in enumerate(self.seen):
            kept = self.pcid and seen.get(process, -1) + 1 == self.generation[process]
            had = other != vcpu and (other in self.mask[process] or kept)
            if had:
                seen[process] = self.generation[process]
            found |= had
        if found:
            self.count(vcpu, "shootdowns")
            self.count(vcpu, "invlpgbs", 1 if pages is None else -(-pages // BROADCAST_PAGES))
            self.count(vcpu, "tlbsyncs")
