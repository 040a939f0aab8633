"""The machine as a Python object."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.bits cimport ONES
from fastmmu.cpu.vcpu cimport (
    ABORT_PYTHON, ACT_ABORT, ACT_EMULATED, ACT_INJECT_GP, ACT_INJECT_PF, ACT_RETRY, Vcpu, vcpu_abort,
    vcpu_derive, vcpu_enter,
)
from fastmmu.kvm.exits cimport kvm_default
from fastmmu.kvm.requests cimport kvm_serve_requests
from fastmmu.kvm.vmm cimport Vmm
from fastmmu.machine.control_instructions cimport RegisterInstructions
from fastmmu.machine.counters cimport counters_of
from fastmmu.machine.events cimport Run, premap, run_events, to_run
from fastmmu.mmu.pages cimport mmu_hpa
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState
from fastmmu.tlb.lookup cimport TlbCounters

from fastmmu.errors import ConfigError, PolicyError, TraceError
from fastmmu.exits import ExitReason
from fastmmu.machine.config import Config
from fastmmu.machine.policy import Action, Exit, overridden


cdef int surface(void *machine, Vcpu *v) noexcept with gil:
    # a VM exit that a Python policy handles
    cdef Machine m = <Machine> machine
    m.handling = True
    try:
        reason = ExitReason(v.vmcs.exit_reason)
        action = m.handlers[reason](m, Exit(reason, v.vmcs.exit_qualification, v.vmcs.guest_physical_address,
                                            v.vmcs.guest_linear_address, v.vmcs.exit_interruption_error,
                                            v.vmcs.operand, v.vmcs.exit_interruption_info, v.source))
        if action not in (ACT_RETRY, ACT_EMULATED, ACT_INJECT_PF, ACT_INJECT_GP):
            raise PolicyError(
                f"the handler of {reason.name} returned {action!r}; return a fastmmu.Action, such as machine.default()"
            )
        return <int> int(action)
    except BaseException as error:
        m.raised = error
        vcpu_abort(v, ABORT_PYTHON, 0)
        return ACT_ABORT
    finally:
        m.handling = False


cdef class Machine(RegisterInstructions):
    """A physical CPU with its TLB, host memory, a VMM in one of the schemes, and a guest.

    With the guest kernel it runs traces of user addresses (:meth:`run`). Without it (``guest_kernel=False``) the guest
    is bare: its tables are what the caller writes into ``guest_memory``, and the methods :meth:`access`,
    :meth:`store`, :meth:`mov_cr0`, :meth:`mov_cr3`, :meth:`mov_cr4`, :meth:`wrmsr_efer`, :meth:`invlpg` are its
    instructions.

    :param config: :class:`Config`. :param policy: :class:`Policy` whose overridden methods handle their exits.
    :param state: registers of a bare guest, in any paging mode; default: long mode, CPL by access. With PAE paging and
        no `pdptes` the PDPTE registers are loaded from memory at CR3 before the first instruction.
    :param slots: more guest-physical memory, of :class:`fastmmu.MemorySlot`; the machine's own is slot 0, these follow.
    :param place: for :class:`Host`: memory of the host, where in it, a TLB, the VPID; it does the VM entry.
    :raises ConfigError: an impossible geometry or mode. :raises OutOfMemoryError: the host refuses the memory.
    """

    def __init__(self, config=None, *, policy=None, guest_kernel=True, GuestState state=None, slots=(), place=None):
        RegisterInstructions.__init__(self, Config() if config is None else config, guest_kernel, state, slots, place)
        self.kvm.machine = <void *> self
        self.kvm.surface = surface
        self.policy = policy
        self.handlers = {reason: getattr(policy, name) for reason, name in overridden(policy).items()}
        for reason in self.handlers:
            self.kvm.surfaced[<int> reason] = 1
        if self.config.premapped:
            if not guest_kernel:
                raise ConfigError("premapped=True maps what the guest kernel would; a bare guest has no kernel")
            self.v.premap = premap
        vcpu_derive(self.v)
        if self.v.guest and place is None and vcpu_enter(self.v):
            self._raise(0)

    # ---- running ------------------------------------------------------------------------------------------

    def run(self, const uint8_t[::1] op not None, const uint8_t[::1] size not None, const uint64_t[::1] addr not None,
            uint64_t[::1] out=None, uint64_t first=0):
        """Run events; all arrays have one length.

        :param op, size, addr: as in :class:`fastmmu.trace.Batch`.
        :param out: receives the guest-physical address of each access (all ones for the other events).
        :param first: number of the first event, for messages.
        :returns: number of events done, the length of the arrays.
        :raises TraceError: an event that is none, naming its index. :raises OutOfMemoryError: guest memory used up.
        """
        cdef uint64_t n = addr.shape[0], done = 0
        cdef uint64_t *to = NULL
        if (<uint64_t> op.shape[0] != n or <uint64_t> size.shape[0] != n
                or (out is not None and <uint64_t> out.shape[0] != n)):
            raise TraceError(f"op, size and addr have different lengths: {op.shape[0]}, {size.shape[0]}, {n}")
        self._guest_runs()
        if self.loop.kernel == NULL:
            raise ConfigError("a bare guest has no kernel to run a trace on; make the Machine with guest_kernel=True")
        if n == 0:
            return 0
        if out is not None:
            to = &out[0]
        self.running = True
        self.loop.first = first
        with nogil:
            done = run_events(self.loop, &op[0], &size[0], &addr[0], n, to)
        self.running = False
        if self.v.abort:
            self._raise(first + done)
        return done

    # ---- what a policy may do -----------------------------------------------------------------------------

    def default(self):
        """Handle the exit under way as KVM does; returns the :class:`Action`. For use in a policy's handler."""
        cdef int action
        if not self.handling:
            raise PolicyError("no VM exit is under way: Machine.default() is for the handlers of a policy")
        with nogil:
            action = kvm_default(self.vcpu)
            kvm_serve_requests(self.vcpu)
        if action == ACT_ABORT:
            self._raise(0)
        return Action(action)

    def inject_page_fault(self, uint64_t la, unsigned int error_code):
        """Make the exit under way end in a #PF for the guest; returns the :class:`Action` to return."""
        self.v.cr2 = la
        self.v.error_code = error_code
        return Action.INJECT_PAGE_FAULT

    @property
    def mmio(self):
        """The access to no memory that the exit under way completed: (guest-physical address, bytes and value stored or
        None for anything but a store); None where it was none. For a policy, after :meth:`default`."""
        if not self.handling or self.v.emulated == ONES or mmu_hpa(&self.kvm.mmu, self.v.emulated) != ONES:
            return None
        value = int(self.v.store_value) | (int(self.v.store_high) << 64 if self.v.store_bytes > 8 else 0)
        return int(self.v.emulated), (int(self.v.store_bytes), value) if self.v.store_bytes else None

    @property
    def vmcs(self):
        """The VMCS as a dict: controls and exit information, by the names of vmx.md §1; empty without a VMM."""
        return dict(self.v.vmcs) if self.v.guest else {}

    @property
    def hw_cr3(self):
        """CR3 of the processor while the guest runs: the guest's value; under shadow paging the shadow root, hpa."""
        return self.v.hw.cr3

    # ---- what surrounds the guest --------------------------------------------------------------------------

    @property
    def vmm(self):
        """The VMM's user space, :class:`Vmm`: memory slots and dirty logs; None for a native machine."""
        cdef Vmm vmm
        self._guest_runs()
        if not self.v.guest:
            return None
        vmm = Vmm.__new__(Vmm)
        vmm.machine = self
        vmm.kvm = &self.kvm
        return vmm

    @property
    def guest_memory(self):
        """Guest-physical memory as a :class:`PhysicalMemory` of its own, without a copy."""
        base = self.loop.guest_base
        return PhysicalMemory.from_array(self.memory.u8[base:base + self.guest.nbytes])

    # ---- results --------------------------------------------------------------------------------------------

    def counters(self):
        """All counters as a dict of int; see :class:`fastmmu.machine.result.Result`."""
        return self._counters(to_run(self.v), &self.v.tlb.c)

    cdef _counters(self, Run *run, TlbCounters *t):
        found = counters_of(run, t)
        if self.missing_flushes is not None:
            found |= {"uses_compared": self.missing_flushes.uses, "stale_uses": self.missing_flushes.found}
        return found
