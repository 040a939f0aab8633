"""vCPUs of a host's machine that come and go; header: machine/vcpus.pxd.

What the rooms know of a machine needs a vCPU that is loaded: where the last one ends its state stays, vacant, for the
VMM's calls, until the next one takes it.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.arch.types cimport MODE_PAE
from fastmmu.cpu.interrupts cimport Interrupts, irq_free
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.host_calls cimport call_allocate_vpid, call_drain, call_flush, call_load, call_reset
from fastmmu.kvm.vcpu cimport kvm_vcpu_create, kvm_vcpu_current, kvm_vcpu_destroy, kvm_vcpu_vpid
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport Run
from fastmmu.machine.exit_ring cimport log_runs
from fastmmu.machine.guest_kernel cimport kernel_free
from fastmmu.machine.shootdown cimport shoot_new_cpu
from fastmmu.mmu.dirty_log cimport dirty_collect, dirty_ring_of
from fastmmu.mmu.mmu cimport MmuContext
from fastmmu.mmu.pages cimport mmu_forget_roots, mmu_free
from fastmmu.mmu.roots cimport mmu_vcpu_create
from fastmmu.paging.guest cimport root_address
from fastmmu.paging.state cimport GuestState

from fastmmu.errors import ConfigError, OutOfMemoryError


cdef int vcpus_begin(Board b) except -1:
    # a machine that is made: as its vCPU is now every vCPU begins
    b.first = <Run *> calloc(1, sizeof(Run))
    if b.first == NULL:
        raise OutOfMemoryError("no memory for a vCPU")
    b.first[0] = b.loop[0]
    b.first.vcpu.irq = NULL
    b.first.vcpu.cpu.apic = NULL
    b.first.process = 0
    kvm_vcpu_vpid(&b.first.vcpu, 0)
    return 0


cdef int vcpus_with_pdptes(Board b, uint64_t count) except -1:
    # further vCPUs begin with PDPTE registers that the state gives
    cdef GuestState state = b.initial
    if count > 1 and state.paging.mode == MODE_PAE and state.pdptes is None:
        raise ConfigError(f"{int(count)} vCPUs that begin with PAE paging; give GuestState(pdptes=)")
    return 0


cdef Run *vcpu_add(Board b) except NULL:
    # where anything raises, a VMM in Python too, it has not come
    cdef bint loads = b.vacant
    cdef Run *run = b.loop if loads else made(b)
    cdef Interrupts *ended = run.vcpu.irq           # of the last vCPU
    cdef MmuContext *c = &run.vcpu.mmu
    if loads:
        take_place(b)
    try:
        if run.kernel != NULL and shoot_new_cpu(&b.kernel, run.vcpu.index):
            raise OutOfMemoryError("no memory for a vCPU of the guest kernel")
        c.role = b.first.vcpu.mmu.role
        c.root_level = b.first.vcpu.mmu.root_level
        run.vcpu.cpu.log = NULL if b.exits is None else &b.exits.log
        if b.config.tpr is not None:
            try:
                b._init_apic(run)
            finally:
                if run.vcpu.irq != ended:
                    drop_apic(ended)
        kvm_vcpu_vpid(&run.vcpu, call_allocate_vpid(b.vm, &run.vcpu, b.vpids, b.config.vpid))
        if loads:
            call_load(b.vm, &run.vcpu)
            if b.exits is not None:
                log_runs(&run.vcpu)
    except BaseException:
        try:
            b.free_vpid(&run.vcpu)
        finally:
            if not loads:
                gone(b, run)
        raise
    b.vacant = False
    return run


cdef Run *made(Board b) except NULL:
    cdef Run *run = <Run *> calloc(1, sizeof(Run))
    if run == NULL:
        raise OutOfMemoryError("no memory for a vCPU")
    run[0] = b.first[0]
    if kvm_vcpu_create(&b.kvm, &run.vcpu):
        free(run)
        raise OutOfMemoryError("no memory for a vCPU")
    if not run.vcpu.cpu.guest:
        return run
    mmu_vcpu_create(&b.kvm.mmu, &run.vcpu.mmu)
    if b.kvm.mmu.slots.ring.size and dirty_ring_of(&b.kvm.mmu, &run.vcpu.mmu, b.kvm.mmu.slots.ring.size):
        kvm_vcpu_destroy(&run.vcpu)
        free(run)
        raise OutOfMemoryError("no memory for the ring of a vCPU")
    return run


cdef int vcpu_set_registers(Board b, Run *run, GuestState state) except -1:
    # of one that has not run yet (KVM_SET_SREGS), which is loaded now
    cdef Vcpu *v = &run.vcpu.cpu
    b._load(run)
    v.hw = state.paging
    v.hw.write_ad = 1
    v.hw.root = root_address(&v.hw, v.hw.cr3)
    v.r = run.vcpu.arch = state.regs
    if call_reset(b.vm, &run.vcpu):
        b._raise(0)
    return 0


cdef void take_place(Board b):
    # of the last vCPU, which has ended
    cdef Run *run = b.loop
    cdef MmuContext context = run.vcpu.mmu
    cdef Interrupts *irq = run.vcpu.irq
    cdef int op
    for op in range(4):
        b.kvm.accesses_ended += run.vcpu.cpu.c.ops[op]
    forgotten(b, run)
    run[0] = b.first[0]
    run.vcpu.mmu = context
    run.vcpu.irq = irq                              # calls read it until there is another
    mmu_forget_roots(&run.vcpu.mmu)


cdef int vcpu_remove(Board b, Run *run) except -1:
    # One that is in no guest mode; another one is loaded in its place. What it logged is read first. It goes whatever
    # a VMM in Python raises meanwhile.
    cdef uint32_t i = 0
    if b.kvm.n_vcpus == 1:
        try:
            read_log(b, run)
        finally:
            forgotten(b, run)
            if b.kvm.shadow:
                mmu_forget_roots(&run.vcpu.mmu)
            kvm_vcpu_vpid(&run.vcpu, 0)
            b.vacant = True
        return 0
    try:
        if b.loop == run:
            while b.kvm.vcpu[i] == &run.vcpu:
                i += 1
            b._load(<Run *> b.kvm.vcpu[i])
        read_log(b, run)
    finally:
        if b.loop == run:                       # the VMM raised: the machine's part of a load
            b._take(<Run *> b.kvm.vcpu[i])
            kvm_vcpu_current(b.vcpu)
        gone(b, run)
    return 0


cdef void gone(Board b, Run *run):
    # one that is not loaded
    forgotten(b, run)
    kvm_vcpu_destroy(&run.vcpu)
    drop_apic(run.vcpu.irq)
    free(run)


cdef void forgotten(Board b, Run *run):
    if b.vm is not None:
        b.vm.forget(&run.vcpu)


cdef int read_log(Board b, Run *run) except -1:
    call_drain(b.vm, &run.vcpu)
    dirty_collect(&b.kvm.mmu)
    b.kvm.mmu.counters.flush_requests += b.kvm.mmu.flush
    call_flush(b.vm, b.vcpu)
    return 0


cdef void drop_apic(Interrupts *irq):
    if irq != NULL:
        irq_free(irq)
        free(irq)


cdef void vcpus_end(Board b):
    # the machine ends, its vCPUs are on no CPU: its tables go; no call gets to its state any more, which goes with it
    b.kvm.ended = True
    mmu_free(&b.kvm.mmu)
    kernel_free(&b.kernel)
