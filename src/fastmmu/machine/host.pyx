"""The host as a Python object."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport counted, flag, instance, many, whole, word
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport vcpu_derive
from fastmmu.kvm.host_calls cimport call_enter, call_exit
from fastmmu.kvm.kvm cimport IN_GUEST_MODE, NOWHERE, OUTSIDE_GUEST_MODE
from fastmmu.kvm.asid_py cimport AsidAllocator
from fastmmu.kvm.vpid_py cimport VpidAllocator
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport Run
from fastmmu.machine.guest_kernel cimport kernel_idle, kernel_switch
from fastmmu.machine.layout cimport all_slots, machine_bytes
from fastmmu.machine.machine cimport Machine
from fastmmu.machine.shared_caches cimport caches_here, caches_of_cpus, caches_under, check_same
from fastmmu.machine.vcpus cimport vcpu_add, vcpu_remove, vcpus_begin, vcpus_end, vcpus_with_pdptes
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.lookup cimport Tlb, TlbCounters
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turn, Turns

from fastmmu.errors import ConfigError, OutOfMemoryError, StateError
from fastmmu.machine.apic_port import Delivered
from fastmmu.machine.config import Config
from fastmmu.machine.exit_log import ExitLog
from fastmmu.machine.hosted import check_fits, check_vendor, count_of, machines_of, reserve, tlbs_of

_LAST = 256             # vCPUs that ended last, whose counters stay


cdef class _Hosted:
    """A machine of a host."""


cdef class _HostVcpu:
    """A vCPU of a host."""


cdef class Host:
    """Physical CPUs with a TLB each, and virtual machines whose vCPUs are put on them (KVM's allocate_vpid,
    vmx_vcpu_load; tlb.md §6, §7). Machines and vCPUs come and go at any time: :meth:`add`, :meth:`add_vcpu`,
    :meth:`remove`.

    vCPUs are numbered through all machines, in the order in which they came; no number is given out again. VPIDs come
    from the host's allocator, the lowest that is free, one a vCPU whose configuration wants one; they come back where
    it ends, and where there is none left a vCPU runs without. One physical CPU runs at a time: the others stand still,
    those that hold a vCPU in guest mode, where a remote flush reaches it by an IPI.

    Each machine has a range of the host's memory, the lowest gap that is large enough (first fit). That of one that
    ended reads as zero for the next. What is cached of it stays cached: as in KVM a vCPU flushes where it runs on a CPU
    for the first time.

    With ``Config(tpr=)`` each vCPU has a local APIC, its id the number within the machine; they send each other
    interrupts. One that stands still on its CPU takes them before its next instruction: made to exit, or by the
    notification vector without an exit (APICv); one that waits for a CPU at its next VM entry. Timers go by the
    accesses of all vCPUs of the machine.

    With ``Config(caches=)``, the same of all machines, each physical CPU has L1 and L2 of its own, all share L3 and
    memory (caches.md §8): ``caches``, a :class:`~fastmmu.cache.CacheHierarchy` of each.

    :param vms: a :class:`Config` for each machine at the start, or (Config, number of vCPUs). The TLB is the first's.
        A native one has the host for itself: its CPUs are the host's, by number, and none stands still.
    :param cpus: number of physical CPUs; None: those of the first's ``topology``, or 1.
    :param guest_kernel, state: as of :class:`Machine`; each vCPU of a bare guest begins with this state, and runs by
        the machine that :meth:`place` returns.
    :param omit: flushes to leave out, by the names of :attr:`Vmm.omit`, to see what they are for; "shootdown": those of
        other vCPUs by the guest kernel.
    :param policy: overrides handlers of VM exits of the machines at the start, see :class:`Machine`.
    :param memory: the host's, bytes or text such as "4T"; only address space, nothing is allocated for it. None: 1 TB,
        or what the first machines take where that is more, or where the operating system refuses so much.
    :raises ConfigError: a native configuration beside others, no machine, no CPU. :raises OutOfMemoryError: too much
        memory in all.

    Threads: one physical CPU runs at a time: :meth:`run`, :meth:`place`, :meth:`add` and :meth:`remove`, and
    instructions of any of its guests, are refused meanwhile (PolicyError); counters, totals, deliveries and the VMMs of
    its machines may be asked from any thread, and are answered between two events.
    """

    def __cinit__(self):
        self.vpids = VpidAllocator()
        self.cpus = self.caches = ()
        self.hosted, self.vcpu, self.last, self.occupant, self.omit = {}, {}, {}, [], []
        self.turns = Turns()

    def __init__(self, vms, *, cpus=None, guest_kernel=True, state=None, omit=(), memory=None, policy=None):
        cdef uint64_t total = 0
        cdef bint kernel = flag("guest_kernel", guest_kernel)
        if self.memory is not None:
            raise StateError("this Host is made already; make another one")
        chosen = machines_of(many("vms", vms))
        self.omit = many("omit", omit)
        tlbs = tlbs_of(chosen[0][0], cpus)
        if state is not None:
            instance("state", state, GuestState)
        for config, _ in chosen:
            total += machine_bytes(config, all_slots(config, kernel, ()))
        self.memory, self.ranges = reserve(total, memory)
        self.cpus = tlbs
        self.spare = TLB(chosen[0][0].geometry)
        self.asids, self.vendor = AsidAllocator(len(tlbs), asids=chosen[0][0].asids, min_asid=chosen[0][0].min_asid), \
            chosen[0][0].vendor
        for tlb in (*self.cpus, self.spare):
            (<TLB> tlb).turns = self.turns
        self.first = chosen[0][0]
        self.caches = caches_of_cpus(self.first, len(tlbs), self.memory.mem.nbytes, self.turns)
        self.occupant = [None] * len(tlbs)
        for config, count in chosen:
            self._add(config, count, policy, kernel, state, [])

    # ---- machines and vCPUs come and go -------------------------------------------------------------------------

    def add(self, config, vcpus=1, *, guest_kernel=True, policy=None, state=None, slots=()):
        """One more machine, at any time.

        :param config: a :class:`Config`, not native. :param vcpus: number of its vCPUs, 1..1024.
        :param guest_kernel, policy, state, slots: as of :class:`Machine`.
        :returns: the :class:`Machine`; numbers of its vCPUs: :meth:`vcpus_of`.
        :raises ConfigError: as of the constructor. :raises OutOfMemoryError: no gap of the host's memory is as large.
        """
        cdef bint kernel = flag("guest_kernel", guest_kernel)
        cdef Turn _turn = self.turns.alone()
        instance("config", config, Config)
        if state is not None:
            instance("state", state, GuestState)
        count = count_of(vcpus)
        self._made()
        if any(not (<_Hosted> vm).board.v.guest for vm in self.hosted.values()):
            raise ConfigError("a native machine has the host for itself; make another Host")
        check_fits(config, count)
        return self._add(config, count, policy, kernel, state, many("slots", slots))

    cdef Machine _add(self, config, uint32_t count, policy, bint kernel, state, list slots):
        cdef _Hosted vm = _Hosted()
        cdef Machine m
        check_vendor(config, self.vendor)
        check_same(config, self.first)
        vm.nbytes = machine_bytes(config, all_slots(config, kernel, slots))
        origin = self.ranges.take(vm.nbytes)
        if origin is None:
            raise OutOfMemoryError(
                f"no {vm.nbytes >> 20} MB of the host's memory in one piece for this machine: {self.ranges.free >> 20} "
                f"of {self.ranges.size >> 20} MB are free, {self.ranges.largest >> 20} at most in one piece; remove a "
                "machine, give it less by Config(memory=), or make the Host with more memory=")
        vm.origin = origin
        try:
            place = self.memory, origin, self.spare, self.vpids, self.asids
            m = Machine(config, policy=policy, guest_kernel=kernel, state=state, slots=slots, place=place)
            vm.machine, vm.board, vm.vcpus = m, m.board, {}
            if count > 1:
                vcpus_with_pdptes(m.board, count)
            m.board.kernel.omit_shootdown = any(isinstance(name, str) and name == "shootdown" for name in self.omit)
            if m.vmm is not None:
                m.vmm.omit = [name for name in self.omit if not isinstance(name, str) or name != "shootdown"]
            m.board.cpus = self.cpus
            m.board.tlb = self.cpus[0]
            m.board.v.tlb = (<TLB> self.cpus[0]).t
            if self.caches:
                caches_under(m.board, self.caches[0])
            vcpus_begin(m.board)
            self._new_vcpu(vm, m.board.loop)
            for _ in range(1, count):
                self._one_more(vm)
        except BaseException:
            try:
                if vm.board is not None and not vm.vcpus:
                    vm.board.free_vpid(vm.board.vcpu)
            finally:
                self._end_machine(vm)
            raise
        self.hosted[m] = vm
        return m

    cdef _HostVcpu _new_vcpu(self, _Hosted vm, Run *run):
        cdef _HostVcpu s = _HostVcpu()
        s.run, s.vm, s.number, s.at = run, vm, self.n_vcpus, -1
        s.logged = 0 if vm.board.exits is None else vm.board.exits.log.total
        self.vcpu[s.number] = vm.vcpus[s.number] = s
        self.n_vcpus += 1
        return s

    def add_vcpu(self, machine):
        """One more vCPU of a machine, at any time. It begins as those did with which the machine was made; under the
        guest kernel in the process of its number within the machine, the lowest that none of its vCPUs has.

        :returns: its number. :raises StateError: a machine that has ended, or is of another host.
        :raises ConfigError: the machine has as many as it can.
        """
        cdef Turn _turn = self.turns.alone()
        cdef _Hosted vm = self._machine(machine)
        count = len(vm.vcpus) + 1
        if count > 1024:
            raise ConfigError(f"{count} vCPUs; a machine has 1..1024")
        check_fits(vm.board.config, count, not vm.board.v.guest)
        vcpus_with_pdptes(vm.board, count)
        return self._one_more(vm).number

    cdef _HostVcpu _one_more(self, _Hosted vm):
        return self._new_vcpu(vm, vcpu_add(vm.board))

    def remove(self, ends):
        """A vCPU, by its number, or a :class:`Machine` with all of its vCPUs ends, also while others are on CPUs.

        It leaves its CPU and gives back its VPID, which flushes nothing: whoever gets the VPID next flushes where it
        first runs. A machine gives back its memory, too, which reads as zero from then on: for what the caller still
        has of it, as for its next owner. All calls of a machine that has ended are refused (StateError); ask for
        deliveries before. With its last vCPU a machine does not end: :meth:`add_vcpu`.

        :raises StateError: there is no such vCPU or machine, or it has ended.
        """
        cdef Turn _turn = self.turns.alone()
        cdef _HostVcpu s
        cdef _Hosted vm
        if isinstance(ends, Machine):
            vm = self._machine(ends)
            del self.hosted[ends]
            self._end_machine(vm)
            return
        s = self._alive(ends)
        vm = s.vm
        if not vm.board.v.guest:
            raise StateError("a native machine keeps its CPUs; make another Host")
        try:
            self._leave_cpu(s)
        finally:
            try:
                self._ended(s)
            finally:
                vcpu_remove(vm.board, s.run)

    cdef int _ended(self, _HostVcpu s) except -1:
        add_interrupts(&self.past, s.run.vcpu.irq)
        self.last[s.number] = s.vm.board._counters(s.run, &s.counted)
        if len(self.last) > _LAST:
            del self.last[next(iter(self.last))]
        del self.vcpu[s.number]
        del s.vm.vcpus[s.number]
        s.vm.board.free_vpid(&s.run.vcpu)
        return 0

    cdef int _end_machine(self, _Hosted vm) except -1:
        # whatever its VMM, a class in Python, raises meanwhile
        cdef _HostVcpu s
        raised = None
        if vm.board is not None:
            for s in [*vm.vcpus.values()]:
                for ends in (True, False):
                    try:
                        self._leave_cpu(s) if ends else self._ended(s)
                    except BaseException as error:
                        raised = error
            add_flushes(&self.past, vm.board)
            vcpus_end(vm.board)
        self.memory.forget(vm.origin, vm.nbytes)
        self.ranges.give(vm.origin, vm.nbytes)
        if raised is not None:
            raise raised
        return 0

    cdef _HostVcpu _alive(self, vcpu):
        number = whole("vcpu", vcpu)
        found = self.vcpu.get(number)
        if found is None:
            raise StateError(f"vCPU {number} has ended, by Host.remove; run another" if 0 <= number < self.n_vcpus else
                             f"vCPU {counted(number)} is outside 0..{int(self.n_vcpus) - 1}")
        return found

    cdef _HostVcpu _asked(self, vcpu):
        # None: it has ended
        number = whole("vcpu", vcpu)
        return None if number not in self.vcpu and 0 <= number < self.n_vcpus else self._alive(number)

    cdef _Hosted _machine(self, machine):
        found = self.hosted.get(instance("machine", machine, Machine))
        if found is None:
            raise StateError("this Machine is none of this Host: it has ended, by Host.remove, or is of another; see "
                             "Host.machines")
        return found

    cdef int _made(self) except -1:
        if self.memory is None:
            raise StateError("this Host is not made: its class must call Host.__init__")
        return 0

    # ---- which vCPU is where ------------------------------------------------------------------------------------

    cdef int _enter(self, _HostVcpu s, uint32_t cpu) except? -2:
        # in guest mode on this CPU, whose occupant it is
        cdef Board b = s.vm.board
        cdef TLB tlb = self.cpus[cpu]
        if not s.run.vcpu.cpu.guest and cpu != s.number:
            raise StateError(f"CPU {cpu} natively is not vCPU {s.number}: each runs on the CPU of its number")
        b._load(s.run)
        b.tlb = tlb
        b.v.tlb = tlb.t
        if self.caches:
            caches_here(b, self.caches[cpu], s.number)
        if not b.v.guest:
            b.vcpu.mode, b.vcpu.pcpu = IN_GUEST_MODE, cpu
            vcpu_derive(b.v)
            return 0
        self.migrations += b.vcpu.pcpu != cpu and b.vcpu.pcpu != NOWHERE
        return call_enter(b.vm, b.vcpu, cpu)

    cdef int _leave(self, uint32_t cpu, bint halts=False) except -1:
        # the host's timer takes the CPU from its vCPU, or this halts, whatever a VMM in Python raises meanwhile
        cdef _HostVcpu s = self.occupant[cpu]
        cdef Board b
        cdef TlbCounters before
        if s is None:
            return 0
        b = s.vm.board
        before = s.run.vcpu.cpu.tlb.c
        self._vacate(s)
        self.switches += 1
        try:
            b._load(s.run)
            if b.v.guest:
                call_exit(b.vm, b.vcpu, cpu, halts)
        finally:
            s.run.vcpu.mode = OUTSIDE_GUEST_MODE
            count_since(&s.counted, &before, &s.run.vcpu.cpu.tlb.c)
        return 0

    cdef int _leave_cpu(self, _HostVcpu s) except -1:
        # wherever it is
        if s.at >= 0:
            self._leave(s.at)
        return 0

    cdef int _vacate(self, _HostVcpu s) except -1:
        self.occupant[s.at] = None
        s.at = -1
        return 0

    def place(self, vcpu, cpu):
        """Put a vCPU on a physical CPU: who was there, and where it was, is left by a VM exit.

        :returns: the :class:`Machine`, which now holds this vCPU: a bare guest's instructions run on it.
        :raises StateError: there is no such vCPU or CPU, or the vCPU has ended.
        """
        cdef Turn _turn = self.turns.alone()
        return self._place(vcpu, cpu)

    cdef object _place(self, vcpu, cpu):
        cdef _HostVcpu s = self._alive(vcpu)
        cdef uint32_t at
        cdef Board b = s.vm.board
        cdef TlbCounters before
        cdef Tlb *tlb
        cdef int outcome
        cpu = whole("cpu", cpu)
        if not 0 <= cpu < len(self.cpus):
            raise StateError(f"CPU {counted(cpu)} is outside 0..{len(self.cpus) - 1}")
        at = cpu
        b._ready()
        if self.occupant[at] is not s:
            self._leave(at)
            self._leave_cpu(s)
        self.occupant[at] = s
        s.at = at
        tlb = (<TLB> self.cpus[at]).t
        before = tlb.c
        try:
            outcome = self._enter(s, at)
        except BaseException:                   # of a VMM in Python
            if s.run.vcpu.mode == OUTSIDE_GUEST_MODE:
                self._vacate(s)
            raise
        finally:
            count_since(&s.counted, &before, &tlb.c)
        if outcome:
            b._raise(0)
        return s.vm.machine

    def run(self, vcpu, cpu, op, size, addr, out=None, first=0):
        """Events of a trace on a vCPU placed on a physical CPU; parameters and errors as of :meth:`Machine.run`.

        Each vCPU of a machine begins in an address space of its own: process number = that of the vCPU.
        """
        self.turns.begin("Host.run()")
        try:
            return self._run(vcpu, cpu, op, size, addr, out, first)
        finally:
            self.turns.end()

    cdef object _run(self, vcpu, cpu, op, size, addr, out, first):
        cdef Board b = (<Machine> self._place(vcpu, cpu)).board
        cdef _HostVcpu s = self._alive(vcpu)
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

    def idle(self, vcpu):
        """The guest kernel has nothing to run on a vCPU (``Config.lazy_tlb``): it halts, and gives up its CPU. Its next
        :meth:`run` goes on with its process. Nothing happens on a vCPU that is on no CPU, or has run nothing.

        :raises StateError: there is no such vCPU. :raises ConfigError: a bare guest.
        """
        cdef Turn _turn = self.turns.alone()
        cdef _HostVcpu s = self._alive(vcpu)
        cdef Board b = s.vm.board
        if s.run.kernel == NULL:
            raise ConfigError("a bare guest has no kernel that could idle; let it execute HLT by exit_instruction(12)")
        if s.at < 0 or not s.begun:
            return
        b._load(s.run)
        b._resumed(0)
        if kernel_idle(&b.kernel):
            b._raise(0)
        if b.v.guest:
            self._leave(s.at, True)

    # ---- results ------------------------------------------------------------------------------------------------

    def vpid(self, vcpu):
        """VPID of a vCPU; 0: it runs without, or has ended."""
        cdef Turn _turn = self.turns.take()
        cdef _HostVcpu s = self._asked(vcpu)
        return 0 if s is None else s.run.vcpu.vpid

    def asid(self, vcpu):
        """ASID of a vCPU of AMD, of the CPU that it ran on last; 0: it has none there, or has ended."""
        cdef Turn _turn = self.turns.take()
        cdef _HostVcpu s = self._asked(vcpu)
        return s.run.vcpu.asid if s is not None and s.run.vcpu.asid_generation else 0

    def counters(self, vcpu):
        """Counters of a vCPU, as of :meth:`Machine.counters`; those of the VMM are its machine's. Of the 256 vCPUs that
        ended last they are as of their end."""
        cdef Turn _turn = self.turns.take()
        cdef _HostVcpu s
        found = self.last.get(whole("vcpu", vcpu))
        if found is not None:
            return dict(found)
        s = self._alive(vcpu)
        return s.vm.board._counters(s.run, &s.counted)

    def exit_log(self, vcpu, costs=None):
        """The last VM exits of a vCPU, of those that its machine keeps: :meth:`Machine.exit_log`."""
        cdef Turn _turn = self.turns.take()
        cdef _HostVcpu s = self._alive(vcpu)
        log = s.vm.machine.exit_log(costs)      # another one may have had its number before it
        records = log.records[max(0, <object> s.logged - log.lost):]
        return ExitLog(records, log.lost, log.vendor).of(int(s.run.vcpu.index))

    def deliveries(self, vcpu):
        """Every interrupt that the guest's handlers got on a vCPU, in order, as :class:`Delivered`; `at`: accesses of
        all vCPUs of its machine until then. Empty without an APIC."""
        cdef Turn _turn = self.turns.take()
        cdef Interrupts *irq = self._alive(vcpu).run.vcpu.irq
        return [] if irq == NULL else [Delivered(irq.log[i].vector, irq.log[i].at) for i in range(irq.log_n)]

    def totals(self):
        """dict of int: migrations, switches (of a CPU to another vCPU), vpids (given out), and over all machines, with
        those that have ended, remote_flushes, flush_requests, ipis (for these). Of guests with an APIC: interprocessor
        (interrupts that they sent), kicks (IPIs by which the VMM made a vCPU exit for one), notifications (IPIs that a
        posted one took)."""
        cdef Turn _turn = self.turns.take()
        cdef _HostVcpu s
        cdef _Hosted vm
        cdef Past found = self.past
        for s in self.vcpu.values():
            add_interrupts(&found, s.run.vcpu.irq)
        for vm in self.hosted.values():
            add_flushes(&found, vm.board)
        return {"migrations": self.migrations, "switches": self.switches, "vpids": self.vpids.map.used, **found}

    @property
    def machines(self):
        """The machines that there are, in the order in which they were made."""
        cdef Turn _turn = self.turns.take()
        return tuple(self.hosted)

    @property
    def vcpus(self):
        """Number of vCPUs that there were in all machines: the next one has this number."""
        return self.n_vcpus

    def vcpus_of(self, machine):
        """Numbers of the vCPUs that a machine has, in the order in which they came."""
        cdef Turn _turn = self.turns.take()
        return tuple(self._machine(machine).vcpus)

    @property
    def free_memory(self):
        """Bytes of the host's memory that no machine has."""
        cdef Turn _turn = self.turns.take()
        return 0 if self.ranges is None else self.ranges.free
