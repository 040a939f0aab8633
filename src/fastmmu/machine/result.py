"""What a simulation came to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fastmmu.machine.config import Config

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """Counters of one run.

    ``.counters``: dict of int, among them

    ========================  ===========================================================================
    accesses                  accesses of the trace (reads + writes + modifies + fetches)
    kernel_accesses           accesses of the guest kernel (page-table reads and writes, page clearing)
    page_crossings            accesses that touched a second page
    l1d_hits, l1i_hits        first-level TLB hits; every access, also of the kernel and each retry, is one lookup
    stlb_hits, tlb_misses     second-level hits; misses of both levels, each of which is a walk
    walks                     walks (misses, and hits whose cached rights or D flag did not suffice)
    guest_walk_refs           guest paging-structure entries read by walks (under shadow paging: shadow entries)
    ept_walk_refs             EPT entries read by walks
    ad_writes                 accessed and dirty flags written by walks
    guest_faults              #PF delivered to the guest
    vm_exits                  VM exits; ``exits_by_reason``: dict of name -> number
    cr3_switches, invlpgs, unmaps, interrupts   events of the trace
    invvpid, invept           flushes that the VMM made
    pf_fast, pf_retry         faults that gave back rights alone; faults begun anew as the host changed its pages
    swap_ins, swap_outs, swap_writes   pages read back, taken away, and of these written to disk (``host_memory``)
    aged_young, aged_old      answers to whether a page was used
    vmm_tables, vmm_table_bytes   table pages that the VMM holds at the end, and their bytes
    host_accesses             of the host's own pages at VM exits (``exit_pages``), each a lookup; host_misses: of both
                              levels, filled without a walk
    remote_flushes            changes that other vCPUs of the machine had to flush for: flush_requests to them, ipis to
                              those in guest mode
    apic_…                    with ``Config.tpr``: reads and writes of registers and of the TPR, interrupts requested,
                              delivered and posted, their latency in accesses (sum, max), threshold exits that could
                              inject nothing (spurious; by cause), accesses emulated, sites patched, polls, handlers
                              that interrupted another (nested), expiries of the timer, ipis that it sent (of these
                              ipis_virtualized without an exit, ipis_other no vectors), vCPUs that these made exit
                              (kicks), posted-interrupt notifications
    ========================  ===========================================================================

    ``.cycles``: modelled cycles in total; ``.cycles_by``: dict of cause -> cycles. ``.seconds``: wall time of the
    simulation itself. ``.tlb``: what each structure of the TLB did, see :meth:`fastmmu.tlb.tlb.TLB.counters`.
    ``.config``: the :class:`Config`. ``.complete``: False where the run was interrupted.
    """

    config: Config
    counters: dict[str, Any]
    cycles: float
    cycles_by: dict[str, float]
    seconds: float
    trace: str = ""
    complete: bool = True
    notes: tuple[str, ...] = field(default=())
    tlb: dict[str, Any] = field(default_factory=dict)

    @property
    def cycles_per_access(self) -> float:
        """Modelled cycles per access of the trace; 0 for an empty run."""
        n: int = self.counters["accesses"]
        return self.cycles / n if n else 0.0

    @property
    def accesses_per_second(self) -> float:
        """Speed of the simulator itself, in accesses of the trace per second."""
        n: int = self.counters["accesses"]
        return n / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, numbers and strings."""
        from msgspec import to_builtins

        return {
            "trace": self.trace,
            "config": to_builtins(self.config),
            "scheme": self.config.name,
            "complete": self.complete,
            "counters": self.counters,
            "tlb": self.tlb,
            "cycles": self.cycles,
            "cycles_by": self.cycles_by,
            "cycles_per_access": self.cycles_per_access,
            "seconds": self.seconds,
            "accesses_per_second": self.accesses_per_second,
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)
