"""A virtual machine and its vCPUs in the hands of a VMM in Python: what `fastmmu.kvm.policy` works on."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, shown, within
from fastmmu.arch.pferr cimport PF_RSVD
from fastmmu.arch.vmx cimport EXIT_EPT_VIOLATION, EXIT_NPF
from fastmmu.cpu.vcpu cimport ACT_ABORT, Vcpu
from fastmmu.kvm.kvm cimport Kvm, KvmCounters, KvmStats, KvmVcpu
from fastmmu.kvm.faults_port cimport faults_of
from fastmmu.kvm.lapic_port cimport Lapic, lapic_of
from fastmmu.kvm.log_port cimport log_of
from fastmmu.kvm.roots_port cimport roots_of
from fastmmu.kvm.vcpu_port cimport VcpuPort
from fastmmu.kvm.vm_port cimport VmPort, made_of, word_of_board
from fastmmu.kvm.vpid_port cimport vpids_of
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.mmu.direct cimport RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS, Fault, direct_page_fault
from fastmmu.mmu.memslots cimport gfn_to_memslot
from fastmmu.mmu.port cimport mmu_of
from fastmmu.threads.turns cimport Turns, this_thread

from fastmmu.errors import PolicyError
from fastmmu.exits import N_REASONS, Exit, ExitReason, FaultClass

ABORT = ACT_ABORT

_reasons = [{int(reason): reason for reason in ExitReason}.get(number) for number in range(N_REASONS)]
_new = tuple.__new__            # a named tuple's own is a function in Python


cdef void number(void *struct, size_t nbytes) noexcept:
    # each word of it, by its place
    cdef size_t i
    for i in range(nbytes // 8):
        (<uint64_t *> struct)[i] = i


cdef dict words_of_counters():
    cdef KvmCounters c
    number(&c, sizeof(c))
    return {name: at for name, at in (<dict> c).items() if not isinstance(at, list)}


cdef dict words_of_stats():
    # those that are counters: the others are what is owed
    cdef KvmStats s
    number(&s, sizeof(s))
    return {name: (<dict> s)[name] for name in ("pf_taken", "pf_fixed", "pf_emulate", "insn_emulation", "mmio_exits",
                                                "tlb_flush")}


cdef dict _counters = words_of_counters(), _stats = words_of_stats()


cdef int place_of(dict words, name) except -1:
    found = words.get(name) if isinstance(name, str) else None
    if found is None:
        raise PolicyError(f"there is no counter {shown(name)}; choose from {', '.join(words)}")
    return found


cdef KvmVcpu nobody


cdef VirtualMachine vm_of(object board, Turns turns, Kvm *kvm, VpidAllocator vpids, object rules):
    """The VM of a board."""
    cdef VirtualMachine vm = VirtualMachine.__new__(VirtualMachine, word_of_board())
    vm.board, vm.turns, vm.kvm = board, turns, kvm
    vm.vcpus = []
    vm.rules = rules
    vm.mmu = mmu_of(vm, &kvm.mmu, &vm.active, rules)
    vm.vpids = vpids_of(vm, vpids)
    return vm


cdef class VirtualMachine(VmPort):
    """A virtual machine in the hands of its VMM, a :class:`fastmmu.Kvm`: vcpus, a :class:`VirtualCpu` each; mmu, its
    :class:`fastmmu.mmu.port.Mmu`; vpids, its host's :class:`fastmmu.kvm.vpid_port.VpidBitmap`; rules, what its
    version of KVM does, a :class:`fastmmu.kvm_versions.KvmRules`.

    Threads: of the thread that runs the machine, while it handles a VM exit or a call of its user space.
    """

    def __cinit__(self, made=None):
        made_of(made, "a VirtualMachine is what a fastmmu.Kvm gets")

    def count_stat(self, name, n=1):
        """Count one of KVM's statistics: pf_taken, pf_fixed, pf_emulate, insn_emulation, mmio_exits, tlb_flush
        (kvm_policy.md §12; :meth:`fastmmu.kvm.vmm.Vmm.stats`).

        :param n: how many, an int of 64 bits. :raises PolicyError: no such statistic, or called outside of a handler.
        """
        self.inside()
        (<uint64_t *> &self.kvm.stats)[place_of(_stats, name)] += within("n", n, 0, 0xFFFFFFFFFFFFFFFF, PolicyError)

    cdef object made(self, kind):
        # its VMM, of this class
        self.policy = self._within(kind, "__init__", (self,))
        return self.policy

    cdef object ask(self, str name, int slot, found=None):
        # a method of the VMM for the dirty log of a slot, which user space calls
        cdef uint64_t active = self.active
        self.active = this_thread()
        log = log_of(self, slot)
        try:
            return self._within(getattr(self.policy, name), name, (log,) if found is None else (log, found))
        finally:
            self.active = active

    cdef object _within(self, method, str name, tuple arguments):
        # What nobody may do while a guest runs is refused in it, as the machine is between two states. Where a policy
        # handles an exit, and calls user space, this is no part of the policy.
        cdef Turns turns = self.turns
        cdef uint64_t busy = turns.busy, handling = turns.handling
        cdef str what = turns.what
        turns.busy, turns.handling, turns.what = this_thread(), 0, f"Kvm.{name}()"
        try:
            return method(*arguments)
        finally:
            turns.busy, turns.handling, turns.what = busy, handling, what

    # ---- its vCPUs -------------------------------------------------------------------------------------------

    cdef object call(self, str name, KvmVcpu *vcpu, uint32_t cpu):
        # a method of the VMM for a vCPU, which no VM exit calls; cpu: that it is put on or taken from, or NOWHERE
        cdef uint64_t active = self.active
        cdef uint32_t placing = self.placing
        self.active, self.placing = this_thread(), cpu
        try:
            return self._within(getattr(self.policy, name), name, (self.of(vcpu),))
        finally:
            self.active, self.placing = active, placing

    cdef VirtualCpu of(self, KvmVcpu *vcpu):
        # the port of this vCPU, which it keeps
        cdef uint32_t i = vcpu.index
        if len(self.vcpus) != <Py_ssize_t> self.kvm.n_vcpus:
            self._renew()
        while i >= self.kvm.n_vcpus or self.kvm.vcpu[i] != vcpu:     # one before it has ended
            i -= 1
        return self.vcpus[i]

    cdef _renew(self):
        # vCPUs came, got their APICs, or ended
        cdef VirtualCpu port
        cdef uint32_t i
        old, self.vcpus = self.vcpus, []
        for i in range(self.kvm.n_vcpus):
            for port in old:
                if port.vcpu == self.kvm.vcpu[i]:
                    break
            else:
                port = VirtualCpu.__new__(VirtualCpu, word_of_board())
                port.vm = self
                port.vcpu = self.kvm.vcpu[i]
                port.v = &port.vcpu.cpu
                port.roots = roots_of(port)
                port.faults = faults_of(port)
            if port.apic is None and port.vcpu.irq != NULL:
                port.apic = lapic_of(self, port.vcpu.irq)
            self.vcpus.append(port)

    cdef forget(self, KvmVcpu *vcpu):
        # it ends: whoever still has its port finds nothing there, and is refused
        cdef VirtualCpu port
        for port in self.vcpus:
            if port.vcpu == vcpu:
                port.vm = VirtualMachine.__new__(VirtualMachine, word_of_board())
                (<VirtualMachine> port.vm).kvm = self.kvm
                port.vm.board = self.board
                port.vcpu = &nobody
                port.v = &nobody.cpu
                if port.apic is not None:
                    (<Lapic> port.apic).vm = port.vm
        self.vcpus = [port for port in self.vcpus if port.vcpu != &nobody]


cdef class VirtualCpu(VcpuPort):
    """A vCPU in the hands of its VMM, which gets it with each VM exit. roots: :class:`fastmmu.kvm.roots_port.Roots`.
    faults: :class:`fastmmu.kvm.faults_port.Faults`. apic: its local APIC, a :class:`fastmmu.kvm.lapic_port.Lapic`, or
    None.

    Threads: as of :class:`VirtualMachine`.
    """

    def __cinit__(self, made=None):
        made_of(made, "a VirtualCpu is what the handlers of a fastmmu.Kvm get")

    @property
    def exit(self):
        """The exit under way, or the last one, a :class:`fastmmu.Exit`; the last one may be a VM entry that failed."""
        cdef const Vcpu *v = self.v
        return _new(Exit, (_reasons[v.vmcs.exit_reason & 0xFFFF], v.vmcs.exit_qualification,
                           v.vmcs.guest_physical_address, v.vmcs.guest_linear_address,
                           v.vmcs.exit_interruption_error, v.vmcs.operand, v.vmcs.exit_interruption_info, v.source))

    def handled_by_policy(self):
        """What a :class:`fastmmu.Policy` of the machine makes of the exit under way, an int (:class:`Action`); None: it
        leaves it to the VMM. :raises PolicyError: none of this vCPU is under way."""
        cdef int action
        self.vm.inside()
        if not self.vm.exiting or self.vm.kvm.running != self.vcpu:
            raise PolicyError("no VM exit of this vCPU is under way")
        if not self.vcpu.kvm.surfaced[self.v.vmcs.exit_reason]:
            return None
        with nogil:
            action = self.vcpu.kvm.surface(self.vcpu.kvm.machine, self.v)
        return action

    # ---- what is counted -------------------------------------------------------------------------------------

    def count(self, name, n=1):
        """Count what the VMM did for this vCPU: pf_fixed, pf_guest, pf_emulate, pf_spurious, ept_build, ept_spurious,
        mmio, pf_fast, pf_retry, invvpid, invept (:mod:`fastmmu.counters`).

        :param n: how many, an int of 64 bits. :raises PolicyError: no such counter, or called outside of a handler.
        """
        self.vm.inside()
        (<uint64_t *> &self.vcpu.c)[place_of(_counters, name)] += within("n", n, 0, 0xFFFFFFFFFFFFFFFF, PolicyError)

    def classify(self, fault_class):
        """Say what the fault under way needed the VMM for, a ``fastmmu.exits.FaultClass``: for the log of exits, and
        counted where it is an EPT violation, or a nested page fault of AMD's by no reserved bit (violations_build and
        so on).

        :raises StateError: no such class. :raises PolicyError: called outside of a handler.
        """
        self.vm.inside()
        self.vcpu.fault_class = FaultClass(within("fault_class", fault_class, 0, 0xFF))
        if self.v.vmcs.exit_reason == EXIT_EPT_VIOLATION or (
                self.v.vmcs.exit_reason == EXIT_NPF and not self.v.vmcs.exit_qualification & PF_RSVD):
            self.vcpu.c.violations[self.vcpu.fault_class] += 1

    # ---- mapping beforehand ----------------------------------------------------------------------------------

    def map_page(self, gpa, *, write=False):
        """Map a guest-physical page as an access to it would (kvm_tdp_map_page, of KVM_PRE_FAULT_MEMORY): the host
        gives the page, the EPT its tables and an entry of the size that fits. No VM exit is counted for it.

        :param gpa: address in the page, below 2^48. :param write: as a write: the host gives a page of its own where it
            had one of zeros for reads.
        :returns: True: it is mapped now, or was; False: there is no memory, no table page is left, or the host is
            changing it. :raises PolicyError: under shadow paging, where a guest's linear addresses are mapped; an
            address beyond these; or called outside of a handler.
        """
        self.vm.inside()
        cdef Fault f
        cdef int result
        f.la = f.gpa = within("gpa", gpa, 0, (1ULL << 48) - 1, PolicyError)
        f.write = flag("write", write)
        f.fetch = f.present = False
        if self.vcpu.kvm.shadow:
            raise PolicyError("map_page() is for EPT: under shadow paging a guest's linear addresses are mapped")
        if gfn_to_memslot(&self.vcpu.kvm.mmu.slots, f.gpa >> 12) == NULL:
            return False
        result = direct_page_fault(&self.vcpu.kvm.mmu, &f)
        if result == RET_PF_RETRY:              # a page was copied: once more
            result = direct_page_fault(&self.vcpu.kvm.mmu, &f)
        return result == RET_PF_FIXED or result == RET_PF_SPURIOUS
