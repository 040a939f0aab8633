"""The host as a Python object."""

from operator import index

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT, SECONDARY_VPID
from fastmmu.cpu.interrupts cimport Interrupts, irq_boundary, irq_free
from fastmmu.cpu.siblings cimport Sibling
from fastmmu.cpu.vcpu cimport Vcpu, vcpu_derive, vcpu_enter, vcpu_leave
from fastmmu.kvm.exits cimport kvm_arm, kvm_drain
from fastmmu.kvm.flush cimport kvm_flush, kvm_moved, kvm_owed_flush
from fastmmu.kvm.ipi cimport NO_EXIT, ipi_arrived, ipi_routed
from fastmmu.kvm.kvm cimport LESS_MOVED, LESS_REMOTE, Kvm
from fastmmu.kvm.lapic cimport kvm_apic_begin, kvm_apic_entry
from fastmmu.kvm.roots cimport kvm_resume_root
from fastmmu.kvm.vpid cimport vpid_alloc, vpid_free, vpid_init
from fastmmu.machine.assembly cimport behind_bytes, host_bytes, tlb_of
from fastmmu.machine.guest_kernel cimport kernel_switch
from fastmmu.machine.machine cimport Machine
from fastmmu.mmu.pages cimport NO_SP, mmu_forget_roots
from fastmmu.mmu.roots cimport mmu_switch, mmu_vcpus
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.lookup cimport Tlb, TlbCounters
from fastmmu.tlb.tlb cimport TLB

from fastmmu.errors import ConfigError, OutOfMemoryError, StateError
from fastmmu.machine.apic_port import Delivered
from fastmmu.machine.config import Config

_LESS = {"moved": LESS_MOVED, "remote": LESS_REMOTE}


cdef void count_since(TlbCounters *total, const TlbCounters *before, const TlbCounters *now) noexcept nogil:
    # all of its fields are 64-bit counts
    cdef uint64_t *to = <uint64_t *> total
    cdef const uint64_t *was = <const uint64_t *> before
    cdef const uint64_t *done = <const uint64_t *> now
    cdef size_t i
    for i in range(sizeof(TlbCounters) // 8):
        to[i] += done[i] - was[i]


cdef void load_ept_root(Kvm *kvm, Vcpu *v) noexcept nogil:
    # All tables may have gone since this vCPU ran, by what another did: the root is another page then, and the old one
    # may serve again. What is cached under it goes by the flush of all that is owed as well, or here, if of one alone.
    cdef uint64_t root = 0 if kvm.shadow or kvm.mmu.vcpu.root == NO_SP else kvm.mmu.sp[kvm.mmu.vcpu.root].hpa
    if not root or root == v.ept.root:
        return
    if not kvm.mmu.policy.modern:
        kvm_flush(kvm, v)
    v.ept.root = root
    v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | root


cdef class Host:
    """Physical CPUs with a TLB each, and virtual machines whose vCPUs are put on them (tlb.md §6, §7).

    vCPUs are numbered through all machines. VPIDs come from the host's allocator, one a vCPU whose configuration wants
    one; where it has none left the vCPU runs without. One physical CPU runs at a time: the others stand still, those
    that hold a vCPU in guest mode, where a remote flush reaches it by an IPI.

    With ``Config(tpr=)`` each vCPU has a local APIC, its id the number within the machine; they send each other
    interrupts. One that stands still on its CPU takes them before its next instruction: made to exit, or by the
    notification vector without an exit (APICv); one that waits for a CPU at its next VM entry. Timers go by the
    accesses of all vCPUs of the machine.

    :param vms: a :class:`Config` for each machine, or (Config, number of vCPUs); not native. The TLB is the first's.
    :param cpus: number of physical CPUs.
    :param guest_kernel, state: as of :class:`Machine`; each vCPU of a bare guest begins with this state, and runs by
        the machine that :meth:`place` returns.
    :param less: flushes to leave out, of "moved" and "remote", to see what they are for.
    :raises ConfigError: a native configuration, no machine, no CPU. :raises OutOfMemoryError: too much memory in all.
    """

    def __cinit__(self):
        vpid_init(&self.vpids)

    def __init__(self, vms, *, cpus=1, guest_kernel=True, state=None, less=()):
        cdef Machine m
        cdef uint64_t origin = 0, total = 0
        cdef uint32_t flags = 0
        chosen = [vm if isinstance(vm, tuple) else (vm, 1) for vm in vms]
        if not chosen or not 1 <= cpus <= 4096:
            raise ConfigError(f"{len(chosen)} machines on {cpus} CPUs; a host has at least one of each")
        for config, count in chosen:
            if not isinstance(config, Config) or config.mmu == "native":
                raise ConfigError(f"{config!r}: a machine of a host is a Config with mmu='shadow' or 'ept'")
            if not 1 <= count <= 1024:
                raise ConfigError(f"{count} vCPUs; a machine has 1..1024")
            most = {None: 1024, "patch": 16}.get(config.tpr, 255)
            if config.apic_id + count > most:
                raise ConfigError(f"tpr={config.tpr!r}: vCPUs up to number {config.apic_id + count - 1}; the guest's "
                                  f"APICs, or its records of the TPR, have room for 0..{most - 1}")
            total += host_bytes(config) + behind_bytes(config, guest_kernel, count)
        for name in less:
            if name not in _LESS:
                raise ConfigError(f"no flush {name!r} to leave out; choose from {', '.join(_LESS)}")
            flags |= <uint32_t> _LESS[name]
        if total > 1 << 46:
            raise OutOfMemoryError(f"{total >> 30} GB of host memory are more than 46 bits of address; give the "
                                   "machines less by Config(memory=)")
        self.memory = PhysicalMemory(total)
        self.cpus = tuple([tlb_of(chosen[0][0]) for _ in range(cpus)])
        self.n_cpus = cpus
        machines, vpids = [], []
        for config, count in chosen:
            own = [vpid_alloc(&self.vpids) if config.vpid else 0 for _ in range(count)]
            vpids.append(own)
            place = self.memory, origin, self.cpus[0], own[0]
            m = Machine(config, guest_kernel=guest_kernel, state=state, place=place)
            if count > 1 and m.pdptes_due:
                raise ConfigError(f"{count} vCPUs that begin with PAE paging; give GuestState(pdptes=)")
            m.kvm.less = flags
            machines.append(m)
            origin += host_bytes(config) + behind_bytes(config, guest_kernel, count)
        self.machines = tuple(machines)
        self._seats(vpids)

    cdef _seats(self, list vpids):
        cdef uint32_t i, vm = 0, n = 0
        cdef Seat *s
        cdef Machine m
        self.n_vms = len(vpids)
        self.seat = <Seat *> calloc(sum([len(own) for own in vpids]), sizeof(Seat))
        self.sibling = <Sibling **> calloc(self.n_vms, sizeof(Sibling *))
        self.peer = <Interrupts ***> calloc(self.n_vms, sizeof(Interrupts **))
        self.held = <uint32_t *> calloc(self.n_vms, 4)
        self.occupant = <uint32_t *> calloc(self.n_cpus, 4)
        if (self.seat == NULL or self.sibling == NULL or self.peer == NULL or self.held == NULL
                or self.occupant == NULL):
            raise OutOfMemoryError(f"no memory for the vCPUs of {self.n_vms} machines")
        memset(self.occupant, 0xFF, 4 * self.n_cpus)
        for vm, own in enumerate(vpids):
            m = self.machines[vm]
            self.held[vm] = n
            self.sibling[vm] = <Sibling *> calloc(len(own), sizeof(Sibling))
            if self.sibling[vm] == NULL:
                raise OutOfMemoryError(f"no memory for {len(own)} vCPUs")
            m.kvm.sibling = self.sibling[vm]
            m.kvm.n_siblings = len(own)
            if m.kvm.shadow and mmu_vcpus(&m.kvm.mmu, len(own)):
                raise OutOfMemoryError(f"no memory for {len(own)} vCPUs")
            for i, vpid in enumerate(own):
                s = &self.seat[n]
                s.v, s.guest, s.until_exit = m.v, m.kvm.guest, m.loop.until_exit
                s.vm, s.index, s.cpu = vm, i, NOWHERE
                s.v.vmcs.vpid = vpid
                s.v.vmcs.secondary &= ~SECONDARY_VPID
                if vpid:
                    s.v.vmcs.secondary |= SECONDARY_VPID
                n += 1
            self.n_seats = n
            if m.loop.irq != NULL:
                self._apics(vm, n - len(own), len(own))

    cdef _apics(self, uint32_t vm, uint32_t first, uint32_t count):
        # a local APIC for each vCPU; the machine has made that of the first
        cdef Machine m = self.machines[vm]
        cdef Seat *s
        cdef uint32_t i
        self.peer[vm] = <Interrupts **> calloc(count, sizeof(Interrupts *))
        if self.peer[vm] == NULL:
            raise OutOfMemoryError(f"no memory for {count} vCPUs")
        for i in range(count):
            s = &self.seat[first + i]
            s.irq = &m.irq if not i else <Interrupts *> calloc(1, sizeof(Interrupts))
            if s.irq == NULL:
                raise OutOfMemoryError(f"no memory for the APICs of {count} vCPUs")
            if i:
                m._init_apic(s.irq, i)
                s.v.apic = &s.irq.virt
                s.v.vmcs.virtual_apic_address = m.v.vmcs.virtual_apic_address
                s.v.vmcs.posted_descriptor_address = m.v.vmcs.posted_descriptor_address
            self.peer[vm][i] = s.irq
            s.irq.peer, s.irq.n_peers, s.irq.sibling = self.peer[vm], count, &self.sibling[vm][i]
        s = &self.seat[first]                   # which the machine holds
        m.v.apic = s.v.apic
        m.v.vmcs.virtual_apic_address = s.v.vmcs.virtual_apic_address
        m.v.vmcs.posted_descriptor_address = s.v.vmcs.posted_descriptor_address

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n_seats):
            if self.seat[i].irq != NULL and self.seat[i].index:
                irq_free(self.seat[i].irq)
                free(self.seat[i].irq)
        for i in range(self.n_vms):
            if self.sibling != NULL:
                free(self.sibling[i])
            if self.peer != NULL:
                free(self.peer[i])
        free(self.sibling)
        free(self.peer)
        free(self.seat)
        free(self.held)
        free(self.occupant)

    cdef uint32_t _number(self, vcpu) except? 0xFFFFFFFF:
        if not 0 <= index(vcpu) < self.n_seats:
            raise StateError(f"vCPU {vcpu} is outside 0..{self.n_seats - 1}")
        return vcpu

    cdef Seat *_alive(self, vcpu) except NULL:
        cdef Seat *s = &self.seat[self._number(vcpu)]
        if s.ended:
            raise StateError(f"vCPU {vcpu} has ended, by Host.remove; run another")
        return s

    # ---- which vCPU is where ------------------------------------------------------------------------------------

    cdef void _hold(self, Seat *s):
        # the machine holds this vCPU from now on
        cdef Machine m = self.machines[s.vm]
        cdef Seat *other = &self.seat[self.held[s.vm]]
        if other == s:
            return
        kvm_drain(&m.kvm, &m.v)                 # all write to one page of the log, and each is read to its own index
        other.v, other.guest, other.until_exit = m.v, m.kvm.guest, m.loop.until_exit
        other.process = m.kernel.current
        m.v, m.kvm.guest, m.loop.until_exit = s.v, s.guest, s.until_exit
        m.kernel.current = s.process
        mmu_switch(&m.kvm.mmu, other.index, s.index)
        if s.irq != NULL:
            m._attach_apic(s.irq)
        m.kvm.running = s.index                 # whose TLB a flush goes to; the others are requested
        load_ept_root(&m.kvm, &m.v)
        self.held[s.vm] = <uint32_t> (s - self.seat)

    cdef int _enter(self, Seat *s, uint32_t cpu):
        # In guest mode on this CPU, whose occupant it is: with the flushes that it owes, if it was not, or was kicked.
        cdef Machine m = self.machines[s.vm]
        cdef Sibling *me = &m.kvm.sibling[s.index]
        cdef TLB tlb = self.cpus[cpu]
        cdef uint32_t reason = NO_EXIT
        self._hold(s)
        m.tlb = tlb
        m.v.tlb = tlb.t
        if s.irq != NULL:
            reason = ipi_arrived(s.irq)
        elif me.kicked:
            reason = EXIT_EXTERNAL_INTERRUPT
        if me.in_guest and reason != NO_EXIT:
            vcpu_leave(&m.v, reason)
            kvm_drain(&m.kvm, &m.v)
            me.in_guest = False
        kvm_arm(&m.kvm, &m.v)
        if m.kvm.shadow:
            if kvm_resume_root(&m.kvm, &m.v):
                return -1
            kvm_owed_flush(&m.kvm, &m.v)
        if me.in_guest:
            vcpu_derive(&m.v)                   # another machine may have been made meanwhile
            return irq_boundary(s.irq) if s.irq != NULL else 0
        if s.cpu != cpu:
            self.migrations += s.cpu != NOWHERE
            kvm_moved(&m.kvm, &m.v)
        elif me.request:
            kvm_flush(&m.kvm, &m.v)
        me.request = me.kicked = False
        me.in_guest = True
        s.cpu = cpu
        if s.irq != NULL:
            ipi_routed(s.irq, cpu)
            kvm_apic_begin(s.irq)
            kvm_apic_entry(s.irq)
        if vcpu_enter(&m.v):
            return -1
        return irq_boundary(s.irq) if s.irq != NULL else 0

    cdef void _leave(self, uint32_t cpu):
        # the host's timer takes the CPU from its vCPU
        cdef Seat *s
        cdef Machine m
        cdef TlbCounters before
        if self.occupant[cpu] == NOWHERE:
            return
        s = &self.seat[self.occupant[cpu]]
        m = self.machines[s.vm]
        self._hold(s)
        before = m.v.tlb.c
        vcpu_leave(&m.v, EXIT_EXTERNAL_INTERRUPT)
        kvm_drain(&m.kvm, &m.v)
        count_since(&s.counted, &before, &m.v.tlb.c)
        m.kvm.sibling[s.index].in_guest = m.kvm.sibling[s.index].kicked = False
        self.occupant[cpu] = NOWHERE
        self.switches += 1

    def place(self, vcpu, cpu):
        """Put a vCPU on a physical CPU: who was there, and where it was, is left by a VM exit.

        :returns: the :class:`Machine`, which now holds this vCPU: a bare guest's instructions run on it.
        :raises StateError: there is no such vCPU or CPU, or the vCPU has ended.
        """
        cdef Seat *s = self._alive(vcpu)
        cdef uint32_t number = s - self.seat, at
        cdef Machine m = self.machines[s.vm]
        cdef TlbCounters before
        cdef Tlb *tlb
        cdef int outcome
        if not 0 <= index(cpu) < self.n_cpus:
            raise StateError(f"CPU {cpu} is outside 0..{self.n_cpus - 1}")
        at = cpu
        m._guest_runs()
        if self.occupant[at] != number:
            self._leave(at)
            if s.cpu != NOWHERE and self.occupant[s.cpu] == number:
                self._leave(s.cpu)
        self.occupant[at] = number
        tlb = (<TLB> self.cpus[at]).t
        before = tlb.c
        outcome = self._enter(s, at)
        count_since(&s.counted, &before, &tlb.c)
        if outcome:
            m._raise(0)
        return m

    def run(self, vcpu, cpu, op, size, addr, out=None, uint64_t first=0):
        """Events of a trace on a vCPU placed on a physical CPU; parameters and errors as of :meth:`Machine.run`.

        Each vCPU of a machine begins in an address space of its own: process number = that of the vCPU.
        """
        cdef Machine m = self.place(vcpu, cpu)
        cdef Seat *s = &self.seat[self._number(vcpu)]
        cdef TlbCounters before = m.v.tlb.c
        try:
            if not s.begun:
                s.begun = True
                if s.index and m.loop.kernel != NULL and kernel_switch(&m.kernel, s.index):
                    m._raise(first)
            return m.run(op, size, addr, out, first)
        finally:
            count_since(&s.counted, &before, &m.v.tlb.c)

    def remove(self, vcpu):
        """The vCPU ends: it leaves its CPU and gives back its VPID, which flushes nothing. It cannot run again.

        :raises StateError: there is no such vCPU, or it has ended.
        """
        cdef Seat *s = self._alive(vcpu)
        cdef uint32_t number = s - self.seat
        cdef Machine m = self.machines[s.vm]
        if s.cpu != NOWHERE and self.occupant[s.cpu] == number:
            self._leave(s.cpu)
        self._hold(s)
        if m.kvm.shadow:
            mmu_forget_roots(&m.kvm.mmu.vcpu)
        s.ended = True
        vpid_free(&self.vpids, m.v.vmcs.vpid)
        m.v.vmcs.vpid = 0
        m.v.vmcs.secondary &= ~SECONDARY_VPID

    # ---- results ------------------------------------------------------------------------------------------------

    def vpid(self, vcpu):
        """VPID of a vCPU; 0: it runs without."""
        cdef Seat *s = &self.seat[self._number(vcpu)]
        cdef Machine m = self.machines[s.vm]
        if self.held[s.vm] == s - self.seat:
            return m.v.vmcs.vpid
        return s.v.vmcs.vpid

    def counters(self, vcpu):
        """Counters of a vCPU, as of :meth:`Machine.counters`; those of the VMM are its machine's."""
        cdef Seat *s = &self.seat[self._number(vcpu)]
        cdef Machine m = self.machines[s.vm]
        cdef bint held = self.held[s.vm] == s - self.seat
        return m._counters(&m.v.c if held else &s.v.c, &s.counted, s.irq)

    def deliveries(self, vcpu):
        """Every interrupt that the guest's handlers got on a vCPU, in order, as :class:`Delivered`; `at`: accesses of
        all vCPUs of its machine until then. Empty without an APIC."""
        cdef Interrupts *irq = self.seat[self._number(vcpu)].irq
        return [] if irq == NULL else [Delivered(irq.log[i].vector, irq.log[i].at) for i in range(irq.log_n)]

    def totals(self):
        """dict of int: migrations, switches (of a CPU to another vCPU), vpids (given out), and over all machines
        remote_flushes, flush_requests, ipis (for these). Of guests with an APIC: interprocessor (interrupts that they
        sent), kicks (IPIs by which the VMM made a vCPU exit for one), notifications (IPIs that a posted one took)."""
        cdef Machine m
        cdef uint32_t i
        found = {"migrations": self.migrations, "switches": self.switches, "vpids": self.vpids.used,
                 "remote_flushes": 0, "flush_requests": 0, "ipis": 0, "interprocessor": 0, "kicks": 0,
                 "notifications": 0}
        for i in range(self.n_seats):
            if self.seat[i].irq != NULL:
                found["interprocessor"] += self.seat[i].irq.c.ipis
                found["kicks"] += self.seat[i].irq.c.kicks
                found["notifications"] += self.seat[i].irq.c.notifications
        for m in self.machines:
            found["remote_flushes"] += m.kvm.remote_flushes
            found["flush_requests"] += m.kvm.flush_requests
            found["ipis"] += m.kvm.ipis
        return found

    @property
    def vcpus(self):
        """Number of vCPUs in all machines."""
        return self.n_seats
