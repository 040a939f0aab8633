"""The machine as a Python object."""

from importlib import import_module
from weakref import ref

import numpy as np

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, instance, linear_address, shown, whole, within
from fastmmu.arch.bits cimport ONES
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.vcpu cimport (
    ABORT_PYTHON, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, ACT_INJECT_PF, ACT_RETRY, Vcpu, vcpu_abort, vcpu_derive,
    vcpu_enter, vcpu_set_handler,
)
from fastmmu.kvm.exit_log cimport kvm_log_begin, kvm_log_end
from fastmmu.kvm.exits cimport kvm_default
from fastmmu.kvm.host_calls cimport call_pre_run
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.kvm.requests cimport kvm_serve_requests
from fastmmu.kvm.vmcb cimport vmcb_of
from fastmmu.kvm.vmm cimport vmm_of
from fastmmu.machine.apic_port cimport GuestApic
from fastmmu.machine.board cimport Board
from fastmmu.machine.events cimport premap
from fastmmu.machine.exit_ring cimport ring_of
from fastmmu.machine.instructions cimport Guest
from fastmmu.mmu.pages cimport mmu_hpa
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.threads.turns cimport Turn, this_thread

from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import ConfigError, PolicyError, StateError
from fastmmu.exits import N_REASONS, REASON_NAMES, Action, Exit, ExitReason
from fastmmu.machine.config import as_config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.exit_log import ExitLog, priced
from fastmmu.machine.policy import Mmio, overridden


_reasons = [{int(reason): reason for reason in ExitReason}.get(number) for number in range(N_REASONS)]
_actions = {int(action): action for action in Action}
_accesses = ["r", "w", "rw", "x", "r"]                   # [Access, or ACC_PDPTES]
_CHECKPOINTS = "fastmmu.machine.checkpoint.machines"        # which imports this module
_new = tuple.__new__        # a named tuple's own is a function in Python


cdef int surface(void *board, Vcpu *v) noexcept with gil:
    # a VM exit that a Python policy handles; others get their turns meanwhile, for what is right at an exit
    cdef Board b = <Board> board
    cdef int outcome = ACT_ABORT
    cdef uint32_t reason = v.vmcs.exit_reason
    cdef uint64_t depth
    exit = _new(Exit, (_reasons[reason], v.vmcs.exit_qualification, v.vmcs.guest_physical_address,
                       v.vmcs.guest_linear_address, v.vmcs.exit_interruption_error, v.vmcs.operand,
                       v.vmcs.exit_interruption_info, v.source))
    b.handling = b.turns.handling = this_thread()
    depth = b.turns.give()
    try:
        outcome = handled(b, reason, exit)
    except BaseException as error:
        b.raised = error
    if not b.turns.claim(depth):
        with nogil:
            b.turns.regain(depth)
    b.handling = b.turns.handling = 0
    if outcome == ACT_ABORT:
        vcpu_abort(v, ABORT_PYTHON, 0)
    return outcome


cdef int in_python(Vcpu *v) noexcept with gil:
    # a VM exit of a machine whose VMM is a class in Python
    cdef Board b = <Board> to_kvm_vcpu(v).kvm.machine
    cdef int outcome = ACT_ABORT
    cdef uint64_t active = b.vm.active
    cdef bint one = not b.turns.busy            # of an instruction, which is no run
    b.vm.active = this_thread()
    if one:
        b.turns.busy, b.turns.what = b.vm.active, "an instruction of the guest"
    b.vm.exiting = True
    kvm_log_begin(to_kvm_vcpu(v))
    try:
        outcome = handled_in_python(b, v)
    except BaseException as error:
        b.raised = error
        vcpu_abort(v, ABORT_PYTHON, 0)
    kvm_log_end(to_kvm_vcpu(v))
    if one:
        b.turns.busy = 0
    b.vm.active = active
    b.vm.exiting = False
    return ACT_ABORT if v.abort else outcome


cdef int handled_in_python(Board b, Vcpu *v) except? -1:
    # after ABORT the abort says why
    cdef uint32_t reason = v.vmcs.exit_reason
    cdef bint rooted = b.kvm.mmu.vcpu.rooted
    action = b.python.handle(b.vm.of(to_kvm_vcpu(v)))
    if v.abort:
        return ACT_ABORT
    if rooted and not b.kvm.mmu.vcpu.rooted:    # what the processor walks would be a page that is free
        raise PolicyError(f"{type(b.python).__name__}.handle() at {REASON_NAMES[reason]} left no root; after zap_all() "
                          "or forget() load one: vcpu.roots.load(), load_pae() or load_direct()")
    if type(action) is not Action and (type(action) is not int or action not in _actions):
        raise PolicyError(f"{type(b.python).__name__}.handle() returned {shown(action)} at {REASON_NAMES[reason]}; "
                          "return a fastmmu.Action, or what vcpu.stop() gives")
    return <int> int(action)


cdef int handled(Board b, uint32_t reason, exit) except? -1:
    action = b.handlers[reason](machine_of(b), exit)
    if type(action) is not Action and action not in (ACT_RETRY, ACT_EMULATED, ACT_INJECT_PF, ACT_INJECT_GP):
        raise PolicyError(
            f"the handler of {exit.reason.name} returned {action!r}; return a fastmmu.Action, such as machine.default()"
        )
    return <int> int(action)


cdef Machine machine_of(Board board):
    # what a policy's handler gets; of one that nobody holds any more, but only its parts, another one
    cdef Machine machine = board.machine()
    if machine is None:
        machine = Machine.__new__(Machine)
        machine._adopt(board)
        board.machine = ref(machine)
    return machine


cdef class Machine:
    """A physical CPU with its TLB, host memory, a VMM in one of the schemes, and a guest.

    With the guest kernel it runs traces of user addresses (:meth:`run`). Without it (``guest_kernel=False``) the guest
    is bare: its tables are what the caller writes into ``guest_memory``, and the methods of ``machine.guest`` are its
    instructions, which the machine has as methods of its own, too: :meth:`load`, :meth:`store`, :meth:`mov_cr3`, ...

    guest: :class:`Guest`. vmm: :class:`Vmm`, the VMM's user space; None for a native machine. apic: :class:`GuestApic`
    of the vCPU that the machine holds; None without ``Config.tpr``. memory: :class:`PhysicalMemory` of the host.
    tlb: :class:`TLB` of the CPU. Each of them keeps what it needs of the machine.

    :param config: :class:`Config`. :param policy: :class:`Policy` whose overridden methods handle their exits.
    :param state: registers of a bare guest, in any paging mode; default: long mode, CPL by access. With PAE paging and
        no `pdptes` the PDPTE registers are loaded from memory at CR3 before the first instruction.
    :param slots: more guest-physical memory, of :class:`fastmmu.MemorySlot`; the machine's own is slot 0, these follow.
    :param place: for :class:`Host`: memory of the host, where in it, a TLB, its VPIDs (:class:`VpidAllocator`); it does
        the VM entry.
    :raises ConfigError: an impossible geometry or mode. :raises OutOfMemoryError: the host refuses the memory.

    Threads: one thread runs it at a time; an instruction of the guest or a second run meanwhile is refused
    (PolicyError). What reads (counters, state, vmcs, ...) and the VMM's calls may come from any thread while it runs,
    and are done between two events, within milliseconds; the handler of a VM exit may make them, too. A signal ends
    :meth:`run` within half a second; :attr:`events` and the counters say how far it came, and it can go on.
    """

    def __cinit__(self, *args, **named):
        self._adopt(Board())

    def __init__(self, config=None, *, policy=None, guest_kernel=True, GuestState state=None, slots=(), place=None):
        cdef Board board = self.board
        cdef bint kernel = flag("guest_kernel", guest_kernel)
        board.unmade()
        try:
            board._build(as_config(config), kernel, state, slots, place)
            self._ready_for(policy, kernel)
        except BaseException:
            board.free_vpid(board.vcpu)
            raise
        if board.v.guest and place is None:
            call_pre_run(board.vm, board.vcpu)
            if vcpu_enter(board.v):
                board._raise(0)

    cdef _ready_for(self, policy, bint kernel):
        cdef Board board = self.board
        board.machine = ref(self)
        board.policy = policy
        board.handlers = [None] * N_REASONS
        board.kvm.machine = <void *> board
        board.kvm.surface = surface
        if board.python is not None:
            vcpu_set_handler(board.v, in_python)
        for reason, name in overridden(policy).items():
            board.handlers[reason] = getattr(policy, name)
            board.kvm.surfaced[<int> reason] = 1
        if board.config.premapped:
            if not kernel:
                raise ConfigError("premapped=True maps what the guest kernel would; a bare guest has no kernel")
            board.v.premap = premap
        vcpu_derive(board.v)
        self._adopt(board)

    cdef _adopt(self, Board board):
        self.board = board
        self.guest = Guest(board)
        self.apic = None if board.vcpu.irq == NULL else GuestApic(board)
        self._vmm = None
        if board.v.guest:
            self._vmm = vmm_of(board, board.turns, &board.kvm, board.vm)

    # ---- running ------------------------------------------------------------------------------------------

    def run(self, op, size, addr, out=None, first=0):
        """Run events; all arrays have one length.

        :param op, size, addr: as in :class:`fastmmu.trace.Batch`.
        :param out: receives the guest-physical address of each access (all ones for the other events).
        :param first: number of the first event, for messages.
        :returns: number of events done, the length of the arrays.
        :raises TraceError: an event that is none, naming its index. :raises OutOfMemoryError: guest memory used up.
        """
        cdef Board board = self.board
        board.turns.begin("Machine.run()")
        try:
            board._on_cpu()
            return board._events(op, size, addr, out, first)
        finally:
            board.turns.end()

    @property
    def events(self):
        """Events that :meth:`run` has carried out, in all its calls; those, too, of one that an exception ended."""
        return self.board.events

    # ---- what a policy may do -----------------------------------------------------------------------------

    def default(self):
        """Handle the exit under way as KVM does; returns the :class:`Action`. For use in a policy's handler."""
        cdef int action
        cdef Turn _turn = self._handler("default")
        cdef Board b = self.board
        if b.python is not None:
            vcpu = b.vm.of(b.vcpu)
            action = b.python.default(vcpu, vcpu.exit)
            if b.v.abort:
                b._raise(0)
            return _actions[action]
        with nogil:
            action = kvm_default(self.board.vcpu)
            kvm_serve_requests(self.board.vcpu)
        if action == ACT_ABORT:
            self.board._raise(0)
        return _actions[action]

    cdef Turn _handler(self, str name):
        # the turn of a call from a handler
        cdef Turn turn = self.board.turns.take()
        if self.board.handling != this_thread():
            raise PolicyError(f"no VM exit is under way: Machine.{name}() is for the handlers of a policy")
        return turn

    def inject_page_fault(self, la, error_code):
        """Make the exit under way end in a #PF for the guest; returns the :class:`Action` to return."""
        cdef uint64_t cr2 = linear_address("la", la)
        cdef uint32_t code = within("error_code", error_code, 0, 0xFFFFFFFF)
        cdef Turn _turn = self._handler("inject_page_fault")
        self.board.v.cr2 = cr2
        self.board.v.error_code = code
        return Action.INJECT_PAGE_FAULT

    @property
    def mmio(self):
        """The access to no memory, nor to the local APIC, that the exit under way completed: a :class:`Mmio`; None
        where it was none. For a policy, after :meth:`default`."""
        cdef Turn _turn = self.board.take()
        cdef const Vcpu *v = self.board.v
        if not self.board.handling or v.emulated == ONES or mmu_hpa(&self.board.kvm.mmu, v.emulated) != ONES:
            return None
        if self.board.vcpu.irq != NULL and v.emulated >> 12 == APIC_BASE >> 12:
            return None
        value = int(v.store_value) | (int(v.store_high) << 64 if v.store_bytes > 8 else 0)
        return Mmio(int(v.emulated), _accesses[v.access], int(v.access_bytes or v.store_bytes),
                    value if v.store_bytes else None)

    def complete_mmio(self, value):
        """What the load reads that the exit under way completes (:attr:`mmio`, the data of KVM_EXIT_MMIO).

        :raises StateError: the value is wider than the load, or nothing is loaded. :raises PolicyError: no exit is
            under way.
        """
        cdef Turn _turn = self._handler("complete_mmio")
        cdef Vcpu *v = self.board.v
        access = self.mmio
        if access is None or access.access not in ("r", "rw") or not 0 < access.size <= 16:
            raise StateError("the exit under way completes no load of 1 to 16 bytes; ask Machine.mmio")
        read = whole("value", value)
        if read < 0 or read >> 8 * access.size:
            raise StateError(f"{shown(read)} does not fit a load of {access.size} bytes")
        v.load_value, v.load_high = read & ONES, read >> 64
        v.loaded = access.size

    @property
    def vmcs(self):
        """The VMCS as a dict: controls and exit information, by the names of the SDM (vol. 3, appendix
        "Field Encoding in VMCS"; vmx.md §1); empty without a VMM."""
        cdef Turn _turn = self.board.take()
        return dict(self.board.v.vmcs) if self.board.v.guest else {}

    @property
    def vmcb(self):
        """The VMCB of a vCPU of AMD as a dict: fields by the names of :class:`fastmmu.arch.vmcb.VmcbField`, in lower
        case (APM vol. 2, appendix B); empty with another vendor, or without a VMM. Guest state is of the last exit."""
        cdef Turn _turn = self.board.take()
        return vmcb_of(self.board.vcpu) if self.board.v.svm else {}

    @property
    def hw_cr3(self):
        """CR3 of the processor while the guest runs: the guest's value; under shadow paging the shadow root, hpa."""
        cdef Turn _turn = self.board.take()
        return self.board.v.hw.cr3

    # ---- what it is made of --------------------------------------------------------------------------------

    @property
    def config(self):
        """The :class:`Config` that it was made from."""
        return self.board.config

    @property
    def memory(self):
        """The host's memory, a :class:`PhysicalMemory`: the VMM's tables, then the guest's memory."""
        return self.board.memory

    @property
    def tlb(self):
        """The :class:`TLB` of the physical CPU that it runs on."""
        return self.board.tlb

    @property
    def policy(self):
        """The :class:`Policy` that it was made with, or None."""
        return self.board.policy

    @property
    def missing_flushes(self):
        """Uses of stale translations, with ``Config.find_missing_flushes``; else None."""
        return self.board.missing_flushes

    @property
    def initial(self):
        """The guest's registers at the start, a :class:`GuestState`."""
        return self.board.initial

    @property
    def exiting(self):
        """A VM exit is being handled, by a Python policy."""
        return bool(self.board.handling)

    @property
    def vmm(self):
        """The VMM's user space, :class:`Vmm`: memory slots and dirty logs; None for a native machine."""
        cdef Turn _turn = self.board.take()
        if self.board.initial is None or self.board.pdptes_due:
            self.board._ready()
        return self._vmm

    @property
    def guest_memory(self):
        """Guest-physical memory as a :class:`PhysicalMemory` of its own, without a copy."""
        self.board.made()
        base = self.board.loop.guest_base
        return PhysicalMemory.from_array(self.board.memory.u8[base:base + self.board.guest_mem.nbytes])

    def counters(self):
        """All counters as a dict of int; see :class:`fastmmu.machine.result.Result`."""
        return self.board.counters()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self, path):
        """Write the machine as it is between two events to a file, from which :meth:`from_checkpoint` makes one that
        goes on as this one does, bit for bit (docs/checkpoints.md). It appears whole, in place of one that is there.

        :raises CheckpointError: a machine of a :class:`Host`, or with a policy or VMM in Python that keeps state and
            does not say how to save it. :raises OSError: the file cannot be written; one that is there stays.
        """
        import_module(_CHECKPOINTS).save_machine(self, path)

    @staticmethod
    def from_checkpoint(path, *, policy=None, vmm=None):
        """The machine of a file that :meth:`save` wrote.

        :param policy: an object of the class of its policy, where it had one. :param vmm: the class of its VMM in
            Python, where it is not fastmmu's own (``Config.vmm``).
        :raises CheckpointError: a file that is damaged or of another version, or another class. :raises OSError: it
            cannot be read.
        """
        return import_module(_CHECKPOINTS).load_machine(path, policy=policy, vmm=vmm)

    # ---- the log of exits ------------------------------------------------------------------------------------------

    def exit_log(self, costs=None):
        """The last VM exits, at most ``Config.exit_log`` of them, of all vCPUs of the machine: :class:`ExitLog`.

        :param costs: :class:`CostModel` that gives their cycles; None: the default one.
        """
        model = None if costs is None else instance("costs", costs, CostModel)
        cdef Turn _turn = self.board.turns.take()
        self.board.made()
        if self.board.exits is None:
            return ExitLog(priced(np.empty(0, EXIT_DTYPE), model), vendor=self.board.config.vendor)
        records = self.board.exits.kept()
        return ExitLog(priced(records, model), self.board.exits.log.total - len(records), self.board.config.vendor)

    def take_exits(self, costs=None, *, first=None):
        """The VM exits since the last call, the oldest first: array of ``fastmmu.dtypes.EXIT_DTYPE``. From the first
        call on, whose exits are those of :meth:`exit_log`, none is lost: the log grows until they are taken.

        :param costs: as of :meth:`exit_log`. :param first: number of the first one wanted, of all exits of the machine,
            from 0 on: those before it are given up, those from it on can be asked for again.
        :raises StateError: there is no exit of that number, or it was taken. :raises OutOfMemoryError: the log could
            not grow.
        """
        model = None if costs is None else instance("costs", costs, CostModel)
        cdef Turn _turn = self.board.turns.take()
        self.board.made()
        if self.board.exits is None:
            self.board.exits = ring_of(self.board.vcpu, 0)
        return priced(self.board.exits.take(first), model)

    # ---- instructions of the guest, as machine.guest has them -------------------------------------------------

    def access(self, la, access="r", *, user=False, size=1):
        """One access of the guest: :meth:`Guest.access`."""
        return self.guest._access(la, access, user, size)

    def load(self, la, size=8, *, user=False):
        """A load of the guest: :meth:`Guest.load`."""
        return self.guest._load(la, size, user)

    def store(self, la, value, size=8, *, user=False):
        """A store of the guest: :meth:`Guest.store`."""
        return self.guest._store(la, value, size, user)

    def exit_instruction(self, reason):
        """An instruction that exits unconditionally: :meth:`Guest.exit_instruction`."""
        return self.guest.exit_instruction(reason)

    def invlpg(self, la):
        """INVLPG: :meth:`Guest.invlpg`."""
        return self.guest.invlpg(la)

    def mov_cr0(self, value):
        """MOV to CR0: :meth:`Guest.mov_cr0`."""
        return self.guest.mov_cr0(value)

    def lmsw(self, source, *, memory=False):
        """LMSW: :meth:`Guest.lmsw`."""
        return self.guest._lmsw(source, memory)

    def clts(self):
        """CLTS: :meth:`Guest.clts`."""
        return self.guest.clts()

    def mov_cr3(self, value):
        """MOV to CR3: :meth:`Guest.mov_cr3`."""
        return self.guest.mov_cr3(value)

    def mov_cr4(self, value):
        """MOV to CR4: :meth:`Guest.mov_cr4`."""
        return self.guest.mov_cr4(value)

    def wrmsr_efer(self, value):
        """WRMSR of IA32_EFER: :meth:`Guest.wrmsr_efer`."""
        return self.guest.wrmsr_efer(value)

    def mov_from_cr0(self):
        """The guest reads CR0."""
        return self.guest.mov_from_cr0()

    def mov_from_cr3(self):
        """The guest reads CR3: its own, whatever the hardware has."""
        return self.guest.mov_from_cr3()

    def mov_from_cr4(self):
        """The guest reads CR4: :meth:`Guest.mov_from_cr4`."""
        return self.guest.mov_from_cr4()

    def rdmsr_efer(self):
        """RDMSR of IA32_EFER."""
        return self.guest.rdmsr_efer()

    @property
    def state(self):
        """The guest's registers as the guest has them: :attr:`Guest.state`."""
        return self.guest.state

    @property
    def hardware(self):
        """What the processor has while the guest runs: :attr:`Guest.hardware`."""
        return self.guest.hardware
