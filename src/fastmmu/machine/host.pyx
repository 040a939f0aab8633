"""The host as a Python object."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu._arguments cimport counted, flag, instance, many, shown, whole, word
from fastmmu.arch.vmx cimport SECONDARY_VPID
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.kvm.kvm cimport NOWHERE
from fastmmu.kvm.vcpu cimport kvm_vcpu_enter, kvm_vcpu_exit
from fastmmu.kvm.vpid cimport vpid_alloc, vpid_free, vpid_init
from fastmmu.machine.board cimport Board, tlb_of
from fastmmu.machine.guest_kernel cimport kernel_switch
from fastmmu.machine.layout cimport behind_bytes, host_bytes
from fastmmu.machine.machine cimport Machine
from fastmmu.mmu.pages cimport mmu_forget_roots
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.lookup cimport Tlb, TlbCounters
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turn, Turns

from fastmmu.errors import ConfigError, OutOfMemoryError, StateError
from fastmmu.machine.apic_port import Delivered
from fastmmu.machine.config import Config


cdef tuple _with_count(vm):
    # (Config, number of vCPUs)
    if isinstance(vm, Config):
        return vm, 1
    pair = vm if isinstance(vm, tuple) else ()
    if len(pair) != 2 or not isinstance(pair[0], Config):
        raise ConfigError(f"{shown(vm)}: a machine of a host is a Config with mmu='shadow' or 'ept', or (Config, "
                          "number of vCPUs)")
    count = whole("the number of vCPUs", pair[1])
    if not 1 <= count <= 1024:
        raise ConfigError(f"{counted(count)} vCPUs; a machine has 1..1024")
    return pair[0], count


cdef class Host:
    """Physical CPUs with a TLB each, and virtual machines whose vCPUs are put on them (KVM's allocate_vpid,
    vmx_vcpu_load; tlb.md §6, §7).

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
    :param omit: flushes to leave out, by the names of :attr:`Vmm.omit`, to see what they are for.
    :raises ConfigError: a native configuration, no machine, no CPU. :raises OutOfMemoryError: too much memory in all.

    Threads: one physical CPU runs at a time: :meth:`run` and :meth:`place`, and instructions of any of its guests, are
    refused meanwhile (PolicyError); counters, totals, deliveries and the VMMs of its machines may be asked from any
    thread, and are answered between two events.
    """

    def __cinit__(self):
        vpid_init(&self.vpids)
        self.cpus, self.machines = (), ()
        self.turns = Turns()

    def __init__(self, vms, *, cpus=1, guest_kernel=True, state=None, omit=()):
        cdef Machine m
        cdef uint64_t origin = 0, total = 0
        cdef uint32_t n_cpus
        cdef bint kernel = flag("guest_kernel", guest_kernel)
        if self.memory is not None:
            raise StateError("this Host is made already; make another one")
        chosen = [_with_count(vm) for vm in many("vms", vms)]
        omit = many("omit", omit)
        cpus = whole("cpus", cpus)
        if not chosen:
            raise ConfigError("no machine; a host has at least one, give a Config each")
        if not 1 <= cpus <= 4096:
            raise ConfigError(f"cpus={counted(cpus)}: a host has 1..4096 physical CPUs")
        n_cpus = cpus
        if state is not None:
            instance("state", state, GuestState)
        for config, count in chosen:
            if config.mmu == "native":
                raise ConfigError(f"{config!r}: a machine of a host is a Config with mmu='shadow' or 'ept'")
            most = {None: 1024, "patch": 16}.get(config.tpr, 255)
            if config.apic_id + count > most:
                raise ConfigError(f"tpr={config.tpr!r}: vCPUs up to number {config.apic_id + count - 1}; the guest's "
                                  f"APICs, or its records of the TPR, have room for 0..{most - 1}")
            total += host_bytes(config) + behind_bytes(config, kernel, count)
        if total > 1 << 46:
            raise OutOfMemoryError(f"{total >> 30} GB of host memory are more than 46 bits of address; give the "
                                   "machines less by Config(memory=)")
        self.memory = PhysicalMemory(total)
        self.cpus = tuple([tlb_of(chosen[0][0]) for _ in range(n_cpus)])
        for tlb in self.cpus:
            (<TLB> tlb).turns = self.turns
        self.n_cpus = n_cpus
        machines, vpids = [], []
        for config, count in chosen:
            own = [vpid_alloc(&self.vpids) if config.vpid else 0 for _ in range(count)]
            vpids.append(own)
            place = self.memory, origin, self.cpus[0], own[0]
            m = Machine(config, guest_kernel=kernel, state=state, place=place)
            if count > 1 and m.board.pdptes_due:
                raise ConfigError(f"{count} vCPUs that begin with PAE paging; give GuestState(pdptes=)")
            m.vmm.omit = omit
            m.board.cpus = self.cpus
            machines.append(m)
            origin += host_bytes(config) + behind_bytes(config, kernel, count)
        self.machines = tuple(machines)
        self._add_vcpus(vpids)

    cdef _add_vcpus(self, list vpids):
        cdef uint32_t vm, i, n = 0
        cdef HostVcpu *s
        cdef Board b
        self.vcpu = <HostVcpu *> calloc(sum([len(own) for own in vpids]), sizeof(HostVcpu))
        self.occupant = <uint32_t *> calloc(self.n_cpus, 4)
        if self.vcpu == NULL or self.occupant == NULL:
            raise OutOfMemoryError(f"no memory for the vCPUs of {len(vpids)} machines")
        memset(self.occupant, 0xFF, 4 * self.n_cpus)
        for vm, own in enumerate(vpids):
            b = (<Machine> self.machines[vm]).board
            for i, vpid in enumerate(own):
                s = &self.vcpu[n]
                s.vm = vm
                s.run = b._add_vcpu(vpid) if i else b.loop
                n += 1
        self.n_vcpus = n

    def __dealloc__(self):
        free(self.vcpu)
        free(self.occupant)

    cdef uint32_t _number(self, vcpu) except? 0xFFFFFFFF:
        number = whole("vcpu", vcpu)
        if not 0 <= number < self.n_vcpus:
            raise StateError(f"vCPU {counted(number)} is outside 0..{int(self.n_vcpus) - 1}")
        return number

    cdef HostVcpu *_alive(self, vcpu) except NULL:
        cdef HostVcpu *s = &self.vcpu[self._number(vcpu)]
        if s.ended:
            raise StateError(f"vCPU {vcpu} has ended, by Host.remove; run another")
        return s

    # ---- which vCPU is where ------------------------------------------------------------------------------------

    cdef int _enter(self, HostVcpu *s, uint32_t cpu):
        # in guest mode on this CPU, whose occupant it is
        cdef Board b = (<Machine> self.machines[s.vm]).board
        cdef TLB tlb = self.cpus[cpu]
        b._load(s.run)
        b.tlb = tlb
        b.v.tlb = tlb.t
        self.migrations += b.vcpu.pcpu != cpu and b.vcpu.pcpu != NOWHERE
        return kvm_vcpu_enter(b.vcpu, cpu)

    cdef void _leave(self, uint32_t cpu):
        # the host's timer takes the CPU from its vCPU
        cdef HostVcpu *s
        cdef Board b
        cdef TlbCounters before
        if self.occupant[cpu] == NOWHERE:
            return
        s = &self.vcpu[self.occupant[cpu]]
        b = (<Machine> self.machines[s.vm]).board
        b._load(s.run)
        before = b.v.tlb.c
        kvm_vcpu_exit(b.vcpu)
        count_since(&s.counted, &before, &b.v.tlb.c)
        self.occupant[cpu] = NOWHERE
        self.switches += 1

    def place(self, vcpu, cpu):
        """Put a vCPU on a physical CPU: who was there, and where it was, is left by a VM exit.

        :returns: the :class:`Machine`, which now holds this vCPU: a bare guest's instructions run on it.
        :raises StateError: there is no such vCPU or CPU, or the vCPU has ended.
        """
        cdef Turn _turn = self.turns.alone()
        return self._place(vcpu, cpu)

    cdef _place(self, vcpu, cpu):
        cdef HostVcpu *s = self._alive(vcpu)
        cdef uint32_t number = s - self.vcpu, at
        cdef Board b = (<Machine> self.machines[s.vm]).board
        cdef TlbCounters before
        cdef Tlb *tlb
        cdef int outcome
        cpu = whole("cpu", cpu)
        if not 0 <= cpu < self.n_cpus:
            raise StateError(f"CPU {counted(cpu)} is outside 0..{int(self.n_cpus) - 1}")
        at = cpu
        b._ready()
        if self.occupant[at] != number:
            self._leave(at)
            if s.run.vcpu.pcpu != NOWHERE and self.occupant[s.run.vcpu.pcpu] == number:
                self._leave(s.run.vcpu.pcpu)
        self.occupant[at] = number
        tlb = (<TLB> self.cpus[at]).t
        before = tlb.c
        outcome = self._enter(s, at)
        count_since(&s.counted, &before, &tlb.c)
        if outcome:
            b._raise(0)
        return self.machines[s.vm]

    def run(self, vcpu, cpu, op, size, addr, out=None, first=0):
        """Events of a trace on a vCPU placed on a physical CPU; parameters and errors as of :meth:`Machine.run`.

        Each vCPU of a machine begins in an address space of its own: process number = that of the vCPU.
        """
        self.turns.begin("Host.run()")
        try:
            return self._run(vcpu, cpu, op, size, addr, out, first)
        finally:
            self.turns.end()

    cdef _run(self, vcpu, cpu, op, size, addr, out, first):
        cdef Board b = (<Machine> self._place(vcpu, cpu)).board
        cdef HostVcpu *s = &self.vcpu[self._number(vcpu)]
        cdef TlbCounters before = b.v.tlb.c
        cdef uint64_t number = word("first", first)
        try:
            if not s.begun:
                s.begun = True
                if b.vcpu.index and b.loop.kernel != NULL and kernel_switch(&b.kernel, b.vcpu.index):
                    b._raise(number)
            return b._events(op, size, addr, out, number)
        finally:
            count_since(&s.counted, &before, &b.v.tlb.c)

    def remove(self, vcpu):
        """The vCPU ends: it leaves its CPU and gives back its VPID, which flushes nothing. It cannot run again.

        :raises StateError: there is no such vCPU, or it has ended.
        """
        cdef Turn _turn = self.turns.alone()
        cdef HostVcpu *s = self._alive(vcpu)
        cdef uint32_t number = s - self.vcpu
        cdef Board b = (<Machine> self.machines[s.vm]).board
        if s.run.vcpu.pcpu != NOWHERE and self.occupant[s.run.vcpu.pcpu] == number:
            self._leave(s.run.vcpu.pcpu)
        b._load(s.run)
        if b.kvm.shadow:
            mmu_forget_roots(b.kvm.mmu.vcpu)
        s.ended = True
        vpid_free(&self.vpids, b.v.vmcs.vpid)
        b.v.vmcs.vpid = 0
        b.v.vmcs.secondary &= ~SECONDARY_VPID

    # ---- results ------------------------------------------------------------------------------------------------

    def vpid(self, vcpu):
        """VPID of a vCPU; 0: it runs without."""
        cdef Turn _turn = self.turns.take()
        return self.vcpu[self._number(vcpu)].run.vcpu.cpu.vmcs.vpid

    def counters(self, vcpu):
        """Counters of a vCPU, as of :meth:`Machine.counters`; those of the VMM are its machine's."""
        cdef Turn _turn = self.turns.take()
        cdef HostVcpu *s = &self.vcpu[self._number(vcpu)]
        cdef Board b = (<Machine> self.machines[s.vm]).board
        return b._counters(s.run, &s.counted)

    def exit_log(self, vcpu, costs=None):
        """The last VM exits of a vCPU, of those that its machine keeps: :meth:`Machine.exit_log`."""
        cdef HostVcpu *s = &self.vcpu[self._number(vcpu)]
        return self.machines[s.vm].exit_log(costs).of(int(s.run.vcpu.index))

    def deliveries(self, vcpu):
        """Every interrupt that the guest's handlers got on a vCPU, in order, as :class:`Delivered`; `at`: accesses of
        all vCPUs of its machine until then. Empty without an APIC."""
        cdef Turn _turn = self.turns.take()
        cdef Interrupts *irq = self.vcpu[self._number(vcpu)].run.vcpu.irq
        return [] if irq == NULL else [Delivered(irq.log[i].vector, irq.log[i].at) for i in range(irq.log_n)]

    def totals(self):
        """dict of int: migrations, switches (of a CPU to another vCPU), vpids (given out), and over all machines
        remote_flushes, flush_requests, ipis (for these). Of guests with an APIC: interprocessor (interrupts that they
        sent), kicks (IPIs by which the VMM made a vCPU exit for one), notifications (IPIs that a posted one took)."""
        cdef Turn _turn = self.turns.take()
        cdef Board b
        cdef Interrupts *irq
        cdef uint32_t i
        found = {"migrations": self.migrations, "switches": self.switches, "vpids": self.vpids.used,
                 "remote_flushes": 0, "flush_requests": 0, "ipis": 0, "interprocessor": 0, "kicks": 0,
                 "notifications": 0}
        for i in range(self.n_vcpus):
            irq = self.vcpu[i].run.vcpu.irq
            if irq != NULL:
                found["interprocessor"] += irq.c.ipis
                found["kicks"] += irq.c.kicks
                found["notifications"] += irq.c.notifications
        for machine in self.machines:
            b = (<Machine> machine).board
            found["remote_flushes"] += b.kvm.remote_flushes
            found["flush_requests"] += b.kvm.flush_requests
            found["ipis"] += b.kvm.ipis
        return found

    @property
    def vcpus(self):
        """Number of vCPUs in all machines."""
        return self.n_vcpus
