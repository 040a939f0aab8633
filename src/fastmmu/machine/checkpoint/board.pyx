"""A whole machine, written and read. Header: board.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport many
from fastmmu.cpu.vcpu cimport vcpu_derive
from fastmmu.kvm.asid cimport SvmCpu
from fastmmu.kvm.kvm cimport Kvm
from fastmmu.kvm.vpid cimport VpidMap
from fastmmu.machine.board cimport Board
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.checkpoint.caches cimport keep_caches
from fastmmu.machine.checkpoint.cpu cimport keep_vcpu
from fastmmu.machine.checkpoint.guest cimport keep_detector, keep_kernel, keep_log, keep_run
from fastmmu.machine.checkpoint.interrupts cimport keep_interrupts
from fastmmu.machine.checkpoint.mmu cimport keep_mmu
from fastmmu.machine.checkpoint.tlb cimport keep_tlb
from fastmmu.machine.exit_ring cimport log_runs
from fastmmu.machine.machine cimport Machine
from fastmmu.paging.memory cimport mem_holds
from fastmmu.threads.turns cimport Turn

from fastmmu.errors import CheckpointError


cdef int keep_board(_Archive a, Board b) except -1:
    # Of a machine that no host has, between two events. `b` is as the configuration makes it where it is read.
    cdef bint due = b.pdptes_due
    a.under("board")
    a.u64("events", &b.events)
    a.u64("clock", &b.clock)
    a.u64("rom_la", &b.rom_la)
    a.u64("rom_hpa", &b.rom_hpa)
    a.flag("pdptes_due", &due)
    a.same("memory", b.memory.mem.nbytes)
    if a.loading and (due and not b.pdptes_due or b.rom_hpa & 0xFFF or not mem_holds(&b.memory.mem, b.rom_hpa, 4096)):
        a.refuse("the guest begins in a mode that it does not begin in")
    b.pdptes_due = due
    a.sparse("bytes", b.memory.mem.base, b.memory.mem.nbytes)
    keep_tlb(a, b.tlb.t)
    keep_vcpu(a, b.vcpu)
    if b.v.guest:
        keep_kvm(a, &b.kvm)
        keep_mmu(a, b.vcpu)
        if a.loading and not (b.vcpu.mmu.rooted or due):
            a.refuse("a guest without a root")
    keep_vpids(a, &b.vpids.map)
    keep_asids(a, b.asids.cpu)
    if b.vcpu.irq != NULL:
        keep_interrupts(a, b.vcpu.irq)
    if b.loop.kernel != NULL:
        keep_kernel(a, &b.kernel)
    keep_run(a, b.loop)
    if b.missing_flushes is not None:
        keep_detector(a, b.missing_flushes.w)
    if b.exits is not None and b.config.exit_log:
        keep_log(a, &b.exits.log)
    if b.caches is not None:
        keep_caches(a, b.caches.c)
    if a.loading:
        vcpu_derive(b.v)
        if b.v.log != NULL:
            log_runs(b.vcpu)
    return 0


cdef int keep_kvm(_Archive a, Kvm *k) except -1:
    # Kvm of kvm/kvm.pxd. Of the new machine: modes svm_cpu flush_by_asid flush_by_address vcpu n_vcpus running surfaced
    # surface machine. Of a host alone: ended. Refused: agile. mmu: mmu.pyx
    a.under("kvm")
    a.same("shadow", k.shadow)
    a.u64("accesses_ended", &k.accesses_ended)
    a.u32("omit", &k.omit, 127)
    a.u64("remote_flushes", &k.remote_flushes)
    a.u64("flush_requests", &k.flush_requests)
    a.u64("ipis", &k.ipis)
    a.plain("stats", &k.stats, sizeof(k.stats))
    return 0


cdef int keep_vpids(_Archive a, VpidMap *m) except -1:
    # VpidMap of kvm/vpid.pxd. Derived: some used
    cdef uint32_t i, bit
    a.under("vpids")
    a.plain("free", m.free, sizeof(m.free))
    if not a.loading:
        return 0
    if m.free[0] & 1:
        a.refuse("the host's own VPID is free")
    m.used = 0
    for i in range(16):
        m.some[i] = 0
    for i in range(1024):
        if m.free[i]:
            m.some[i >> 6] |= <uint64_t> 1 << (i & 63)
        for bit in range(64):
            m.used += not m.free[i] >> bit & 1
    m.used -= 1                                 # the host's
    return 0


cdef int keep_asids(_Archive a, SvmCpu *x) except -1:
    # SvmCpu of kvm/asid.pxd
    a.under("asids")
    a.same("max_asid", x.max_asid)
    a.same("min_asid", x.min_asid)
    a.u64("asid_generation", &x.asid_generation)
    a.u32("next_asid", &x.next_asid, x.max_asid + 1)
    if a.loading and x.next_asid < x.min_asid:
        a.refuse(f"the next ASID is {int(x.next_asid)}")
    return 0


# ---- for Python -------------------------------------------------------------------------------------------

def state_of(Machine machine not None):
    """The state of a machine: names of its words, and its arrays.

    :raises CheckpointError: one of a :class:`fastmmu.Host`.
    """
    cdef _Archive a = _Archive()
    cdef Turn _turn = machine.board.turns.alone()
    refuse_others(machine.board)
    keep_board(a, machine.board)
    return a.finished(), a.arrays


def restore(Machine machine not None, names, dict arrays not None):
    """Give a new machine of the same configuration the state of another one. Where that is refused the machine is of no
    use any more.

    :raises CheckpointError: it is the state of no such machine.
    """
    cdef _Archive a = _Archive(arrays, many("names", names))
    cdef Turn _turn = machine.board.turns.alone()
    refuse_others(machine.board)
    keep_board(a, machine.board)
    a.finished()
    machine.state                               # registers that no processor has are refused as a GuestState's are


def given_to(Machine machine not None):
    """What a machine was made with beside its configuration: whether with the guest kernel, and slots."""
    machine.board.made()
    return machine.board.given


def vmm_object(Machine machine not None):
    """The VMM in Python of a machine, or None."""
    return machine.board.python


cdef int refuse_others(Board b) except -1:
    b.made()
    if b.first != NULL or b.kvm.n_vcpus != 1:
        raise CheckpointError("a machine of a Host shares memory, CPUs and VPIDs with others, and is not saved alone; "
                              "save a Machine made by itself")
    return 0
