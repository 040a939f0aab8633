"""Counters of a run, by name: the rows of fastmmu.counters."""

from fastmmu.kvm.kvm cimport Kvm
from fastmmu.machine.events cimport Run
from fastmmu.tlb.lookup cimport L1D, L1I, L1S, L2, L2I, TlbCounters

from fastmmu.counters import APIC, COUNTERS, reader
from fastmmu.exits import N_REASONS, ExitReason

# exit reasons without a name come from EXIT events only
_REASONS = [{int(r): r.name.lower() for r in ExitReason}.get(i, f"reason_{i}") for i in range(N_REASONS)]
_counters = reader(COUNTERS)
_apic = reader(APIC)


cdef dict tlb_counters(TlbCounters *t):
    return {
        "l1i_hits": t.lookups[L1I] - t.misses[L1I], "l1i_misses": t.misses[L1I],
        "l1d_hits": t.lookups[L1D] + t.lookups[L1S] - t.misses[L1D] - t.misses[L1S],
        "l1d_misses": t.misses[L1D] + t.misses[L1S], "stlb_hits": sum(t.hits[L2]) + sum(t.hits[L2I]),
    }


cdef dict counters_of(Run *run, TlbCounters *t):
    # of a vCPU, with those of its VM
    cdef Kvm *kvm = run.vcpu.kvm
    cdef dict cpu = run.vcpu.cpu.c, found
    cpu["exits_by_reason"] = {_REASONS[i]: number for i, number in enumerate(cpu["exits"]) if number}
    vmm = {**dict(run.vcpu.c), "remote_flushes": kvm.remote_flushes, "flush_requests": kvm.flush_requests,
           "ipis": kvm.ipis}
    found = _counters({"cpu": cpu, "tlb": tlb_counters(t), "mmu": dict(kvm.mmu.counters), "guest": dict(run.c),
                       "kvm": vmm})
    if run.vcpu.irq != NULL:
        found |= _apic({"apic": dict(run.vcpu.irq.c)})
    return found
