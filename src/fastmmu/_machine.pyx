"""The machine as a Python object."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._apic_port cimport GuestApic
from fastmmu._bits cimport ONES
from fastmmu._events cimport exit_instruction, premap, run_events
from fastmmu._guest cimport canonical
from fastmmu._guest_kernel cimport (
    GUEST_APIC, GUEST_CODE, GUEST_ROM, PAGES_2M, PAGES_4K, PAGES_THP, kernel_boot, kernel_free, kernel_init,
)
from fastmmu._interrupts cimport (
    APIC_BASE, HANDLER_EOI, HANDLER_IRQL, RULE_KVM, RULE_SLIDES, WAY_APICV, WAY_FLEXPRIORITY, WAY_PATCH, WAY_TRAP,
    Interrupts, irq_free, irq_init,
)
from fastmmu._kvm cimport kvm_default, kvm_handle, kvm_new_role
from fastmmu._kvm_apic cimport kvm_apic_init
from fastmmu._memory cimport PhysicalMemory
from fastmmu._mmu cimport Policy, mmu_free, mmu_hpa, mmu_init, mmu_set_root
from fastmmu._patch cimport patch_record
from fastmmu._slots cimport Slot, slots_add, slots_untouched
from fastmmu._spte cimport FORMAT_EPT, FORMAT_PAGING
from fastmmu._state cimport Eptp, GuestState, access_code
from fastmmu._tlb cimport L1D, L1I, L1S, L2, L2I, TlbCounters
from fastmmu._tlb_py cimport TLB
from fastmmu._types cimport ACC_X, Paging
from fastmmu._vapic cimport LINEAR_FETCH, VAPIC_EXIT, Vapic, vapic_other
from fastmmu._vcpu cimport (
    ABORT_ADDRESS, ABORT_APIC, ABORT_BUS, ABORT_ENTRY, ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, ABORT_MISCONFIG,
    ABORT_NO_PROGRESS, ABORT_NONE, ABORT_OP, ABORT_PROCESS, ABORT_PYTHON, ABORT_TABLES, ACT_ABORT, ACT_EMULATED,
    ACT_INJECT_PF, ACT_RETRY, DONE_ABORT, DONE_EMULATED, DONE_OK, DONE_PF, Counters, Vcpu, vcpu_abort, vcpu_access,
    vcpu_derive, vcpu_enter, vcpu_exit, vcpu_invlpg, vcpu_mov_cr3, vcpu_mov_cr4, vcpu_store,
)
from fastmmu._vmm cimport Vmm
from fastmmu._watch cimport MissingFlushes
from fastmmu._vmx cimport (
    ENTRY_LONG_MODE, ERROR_CONTROL_FIELDS, EXIT_CR_ACCESS, PIN_EXTERNAL_INTERRUPT, PRIMARY_CR3_LOAD, PRIMARY_INVLPG,
    PRIMARY_SECONDARY, SECONDARY_EPT, SECONDARY_VPID, VECTOR_PF, clear_exit_information,
)
from fastmmu.errors import BusError, ConfigError, FastmmuError, OutOfMemoryError, PolicyError, StateError, TraceError
from fastmmu.exits import N_REASONS, ExitReason
from fastmmu.geometry import geometry
from fastmmu.machine.config import Config, parse_bytes
from fastmmu.machine.policy import Action, Exit, overridden
from fastmmu.machine.slots import MemorySlot

# exit reasons without a name come from EXIT events only
_REASONS = [{int(r): r.name.lower() for r in ExitReason}.get(i, f"reason_{i}") for i in range(N_REASONS)]

cdef enum:                      # host-physical pages of the VMM
    PML_LOG = 0x1000            # page 0 stays unused, so that no root is 0
    VIRTUAL_APIC = 0x2000
    POSTED_DESCRIPTOR = 0x3000
    VMM_TABLES = 0x4000


# Bits of CR4 that change what shadow tables must be, or flush: all but those of the guest alone (PVI, TSD, DE, PCE,
# OSFXSR, OSXMMEXCPT, FSGSBASE)
cdef uint64_t CR4_OF_SHADOW = ~(<uint64_t> 0x1070E)


cdef uint64_t host_bytes(config) except 0:
    # host memory that a machine takes: the guest's, and in front of it the VMM's tables
    cdef uint64_t guest_bytes = config.memory_bytes
    if config.mmu == "native":
        return guest_bytes
    return guest_bytes + (((guest_bytes >> 5) + (1 << 26)) & ~(<uint64_t> 0x1FFFFF))


cdef TLB tlb_of(config):
    return TLB(geometry(config.tlb, l1d=config.l1d, l1i=config.l1i, stlb=config.stlb, replacement=config.replacement,
                        walk_caches=config.walk_caches))


cdef int fetched_from_apic(Vcpu *v, Vapic *virt, uint64_t hpa) noexcept nogil:
    # a fetch from the APIC-access page is never virtualized (apic.md §4)
    cdef int action
    if not v.guest or vapic_other(virt, hpa & 0xFFF, LINEAR_FETCH) != VAPIC_EXIT:
        return DONE_OK
    clear_exit_information(&v.vmcs)
    v.vmcs.exit_qualification = virt.qualification
    action = vcpu_exit(v, virt.reason)
    return DONE_ABORT if action == ACT_ABORT else DONE_PF if action == ACT_INJECT_PF else DONE_EMULATED


cdef int surface(void *machine, Vcpu *v) noexcept with gil:
    # a VM exit that a Python policy handles
    cdef Machine m = <Machine> machine
    m.handling = True
    try:
        reason = ExitReason(v.vmcs.exit_reason)
        action = m.handlers[reason](m, Exit(reason, v.vmcs.exit_qualification, v.vmcs.guest_physical_address,
                                            v.vmcs.guest_linear_address, v.vmcs.exit_interruption_error,
                                            v.vmcs.operand))
        if action not in (ACT_RETRY, ACT_EMULATED, ACT_INJECT_PF):
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


class Access(NamedTuple):
    """What one access of a bare guest came to.

    gpa: guest-physical address, None where it faulted, or where a Python policy completed it. error_code, cr2: of the
    #PF, or None.
    """

    gpa: int | None
    error_code: int | None
    cr2: int | None


cdef class Machine:
    """A physical CPU with its TLB, host memory, a VMM in one of the schemes, and a guest.

    With the guest kernel it runs traces of user addresses (:meth:`run`). Without it (``guest_kernel=False``) the guest
    is bare: its tables are what the caller writes into ``guest_memory``, and the methods :meth:`access`,
    :meth:`store`, :meth:`mov_cr3`, :meth:`invlpg` are its instructions.

    :param config: :class:`Config`. :param policy: :class:`Policy` whose overridden methods handle their exits.
    :param state: registers of a bare guest (4-level paging); default: long mode, CPL by access.
    :param slots: more guest-physical memory, of :class:`fastmmu.MemorySlot`; the machine's own is slot 0, these follow.
    :param place: for :class:`Host`: memory of the host, where in it, a TLB, the VPID; it does the VM entry.
    :raises ConfigError: an impossible geometry or mode. :raises OutOfMemoryError: the host refuses the memory.
    """

    def __init__(self, config=None, *, policy=None, guest_kernel=True, GuestState state=None, slots=(), place=None):
        cdef uint64_t guest_bytes, more
        cdef uint32_t vpid
        config = Config() if config is None else config
        self.config = config
        self.loop.exit_every = self.loop.until_exit = config.exit_every
        self.loop.v = &self.v
        self.v.run = &self.loop
        guest_bytes = config.memory_bytes
        slots = [*slots]
        if config.tpr in ("flexpriority", "apicv") and config.mmu != "native":
            slots.append(MemorySlot(APIC_BASE, 0x1000, private=True))
        vpid = 1 if config.vpid else 0
        if place is None:
            self.tlb = tlb_of(config)
            placed, more = self._place(slots, host_bytes(config))
            self.memory = PhysicalMemory(more)
        else:
            self.memory, self.origin, self.tlb, vpid = place
            placed, more = (), self.origin + host_bytes(config)
        self.loop.guest_base = self.origin + host_bytes(config) - guest_bytes
        self.guest.base = self.memory.mem.base + self.loop.guest_base
        self.guest.nbytes = guest_bytes
        self.v.mem = &self.memory.mem
        self.v.tlb = self.tlb.t
        if config.find_missing_flushes:
            self.missing_flushes = MissingFlushes(shadow=config.mmu == "shadow")
            self.v.watch = self.missing_flushes.w
        self.v.owner = &self.kvm
        self.v.handler = kvm_handle
        self.kvm.machine = <void *> self
        self.kvm.surface = surface
        if state is None:
            state = GuestState(cr4=0xA0 | (1 << 17 if config.pcid else 0), cr3=0, maxphyaddr=46)
        self.v.hw = state.paging
        self.v.hw.write_ad = 1
        if guest_kernel:
            self._boot()
            state = state.replace(cr3=self.kernel.root[0] | (1 if config.pcid else 0))
            self.v.hw = state.paging
            self.v.hw.write_ad = 1
        elif config.mmu == "shadow" and state.cr4 & (1 << 22 | 1 << 24):
            raise ConfigError(f"cr4={state.cr4:#x}: shadow paging does not virtualize protection keys, KVM offers none "
                              "then; clear bits 22 and 24, or use mmu='ept'")
        elif self.v.hw.levels != 4:
            raise ConfigError(f"the machine runs guests with 4-level paging, not mode {state.mode.name}")
        if config.mmu != "native":
            self._build_vmm(vpid, state, placed, more)
        if config.tpr is not None:
            self._build_apic()
        self.state = state
        self.policy = policy
        self.handlers = {reason: getattr(policy, name) for reason, name in overridden(policy).items()}
        for reason in self.handlers:
            self.kvm.surfaced[<int> reason] = 1
        if config.premapped:
            if not guest_kernel:
                raise ConfigError("premapped=True maps what the guest kernel would; a bare guest has no kernel")
            self.v.premap = premap
        vcpu_derive(&self.v)
        if self.v.guest and place is None and vcpu_enter(&self.v):
            self._raise(0)

    cdef _boot(self):
        cdef int pages = {"4k": PAGES_4K, "2m": PAGES_2M, "thp": PAGES_THP}[self.config.pages]
        if self.config.premapped and pages == PAGES_THP:
            pages = PAGES_2M                    # what is mapped beforehand is collapsed beforehand
        if kernel_init(&self.kernel, &self.v, &self.guest, pages, self.config.thp_threshold, self.config.pcid):
            raise OutOfMemoryError(f"no memory for the guest kernel; make memory={self.config.memory!r} smaller")
        self.loop.kernel = &self.kernel
        self.kernel.apic = self.config.tpr is not None
        if kernel_boot(&self.kernel):
            self._raise(0)

    cdef _build_apic(self):
        cdef Interrupts *irq = &self.irq
        config = self.config
        irq_init(irq, &self.v, self.memory.mem.base + VIRTUAL_APIC if self.v.guest else NULL)
        irq.apic.id = irq.patch.cpu = config.apic_id
        irq.way = {
            "trap": WAY_TRAP, "patch": WAY_PATCH, "flexpriority": WAY_FLEXPRIORITY, "apicv": WAY_APICV,
        }[config.tpr]
        irq.rule = RULE_SLIDES if config.tpr_threshold == "slides" else RULE_KVM
        irq.handler = HANDLER_IRQL if config.guest_handler == "irql" else HANDLER_EOI
        irq.tpr_shadow = config.tpr_shadow
        irq.patch.one_vcpu = config.tpr_patch == "one-vcpu"
        irq.la = APIC_BASE
        if self.loop.kernel != NULL:
            irq.la = GUEST_APIC
            irq.patch.code_la = GUEST_CODE
            irq.patch.rom_la = GUEST_ROM
            irq.patch.record_hpa = self.loop.guest_base + self.kernel.rom_gpa + (patch_record(&irq.patch) & 0xFFF)
        self.loop.irq = irq
        if self.v.guest:
            self.kvm.irq = irq
            self.v.vmcs.virtual_apic_address = VIRTUAL_APIC
            self.v.vmcs.posted_descriptor_address = POSTED_DESCRIPTOR
            kvm_apic_init(irq)
        self.apic = GuestApic.__new__(GuestApic)
        (<GuestApic> self.apic).machine = self
        (<GuestApic> self.apic).irq = irq

    cdef _place(self, slots, end):
        # host-physical addresses of more slots, and the end of memory; equal to the guest's modulo 2 MB
        placed = []
        for slot in slots:
            if self.config.mmu == "native":
                raise ConfigError('slots are the VMM\'s: use mmu="ept" or mmu="shadow"')
            if (slot.gpa | slot.size) & 0xFFF or slot.size <= 0 or slot.gpa < 0 or slot.gpa + slot.size > 1 << 46:
                raise ConfigError(f"{slot}: gpa and size must be multiples of 4096 below {1 << 46:#x}")
            at = (end + 0x1FFFFF & ~0x1FFFFF) + (slot.gpa & 0x1FFFFF)
            end = at + slot.size
            placed.append((slot, at))
        return placed, (end + 0x1FFFFF & ~0x1FFFFF)

    cdef _add_slot(self, uint64_t gpa, uint64_t size, uint64_t hpa, host, bint readonly, bint private,
                   bint device):
        cdef int n = slots_add(&self.kvm.mmu.slots, gpa >> 12, size >> 12, hpa)
        cdef Slot *slot
        if n < 0:
            raise ConfigError(f"slot at {gpa:#x} of {size:#x} bytes " +
                              ("overlaps another" if n == -2 else "is one too many; there are at most 32"))
        slot = &self.kvm.mmu.slots.slot[n]
        slot.readonly = readonly
        slot.private = private
        slot.device = device
        slot.huge = host == "2m"
        if host == "untouched" and slots_untouched(&self.kvm.mmu.slots, n):
            raise OutOfMemoryError(f"no memory for the state of {size >> 12} host pages; make the slot smaller")

    cdef _set_policy(self):
        cdef Policy *p = &self.kvm.mmu.policy
        config = self.config
        p.modern = p.prefetch = p.unsync = p.flooding = config.kvm == "6.1"
        if config.unsync is not None:
            p.unsync = config.unsync
        p.fast = p.modern and config.mmu == "ept"
        p.mmio_caching = p.modern and config.mmio_caching
        p.tdp = config.mmu == "ept" and config.tdp_mmu
        p.eager_split = config.eager_page_split
        p.nx_huge = config.nx_huge_pages
        p.pml = config.pml
        p.limit = config.table_pages
        if config.host_memory is not None:
            self.kvm.mmu.slots.limit = max(16, parse_bytes(config.host_memory) >> 12)

    cdef _build_vmm(self, uint32_t vpid, state, placed, uint64_t end):
        cdef bint shadow = self.config.mmu == "shadow"
        cdef Eptp eptp
        cdef GuestState hardware
        self.v.vmcs.pml_address = self.origin + PML_LOG
        if mmu_init(&self.kvm.mmu, &self.memory.mem, self.loop.guest_base, end - self.loop.guest_base,
                    FORMAT_PAGING if shadow else FORMAT_EPT, shadow or self.config.ept_ad, self.origin + VMM_TABLES,
                    self.loop.guest_base):
            raise OutOfMemoryError(f"no memory for the VMM; make memory={self.config.memory!r} smaller")
        self.kvm.mmu.guest = self.guest
        self._set_policy()
        self.kvm.mmu.noncoherent = self.config.noncoherent_dma
        self.kvm.mmu.ignore_cd = self.config.cd_quirk
        self.kvm.mmu.mtrrs = (<GuestState> state).mtrrs.state
        self.kvm.mmu.uncached = state.cr0 >> 30 & 1
        self._add_slot(0, self.guest.nbytes, self.loop.guest_base,
                       "untouched" if self.config.host_pages == "untouched" or self.config.host_memory is not None
                       else self.config.backing, False, False, False)
        for slot, hpa in placed:
            self._add_slot(slot.gpa, slot.size, hpa, slot.host, slot.readonly, slot.private, slot.device)
            if slot.gpa == APIC_BASE and slot.private:
                self.v.vmcs.apic_access_address = hpa
        self.kvm.shadow = shadow
        self.v.guest = True
        self.v.vmcs.pin_based = PIN_EXTERNAL_INTERRUPT
        self.v.vmcs.primary = PRIMARY_SECONDARY
        self.v.vmcs.vm_entry = ENTRY_LONG_MODE
        self.v.vmcs.secondary = SECONDARY_VPID if vpid else 0
        self.v.vmcs.vpid = vpid
        self.v.host_pages = self.config.exit_pages
        self.v.vmcs.cr4_shadow = state.cr4
        if self.config.vendor == "amd":
            self.v.vmcs.cr4_mask = ONES
        if shadow:                              # vmx.md §2: with EPT the guest owns all three
            self.v.vmcs.primary |= PRIMARY_CR3_LOAD | PRIMARY_INVLPG
            self.v.vmcs.exception_bitmap = 1 << VECTOR_PF
            self.v.vmcs.cr4_mask |= CR4_OF_SHADOW
            self.kvm.guest = self.v.hw
            # CR0.WP, NXE on and PCIDE, PGE, keys off, whatever the guest has (kvm_policy.md §2)
            hardware = self._hardware(state)
            if kvm_new_role(&self.kvm, &self.v, &self.kvm.guest, &hardware.paging):
                self._raise(0)
            return
        if mmu_set_root(&self.kvm.mmu, 0, True):
            raise OutOfMemoryError("no table page for the root of the EPT")
        eptp = Eptp(self.kvm.mmu.sp[self.kvm.mmu.root].hpa | (0x5E if self.config.ept_ad else 0x1E), maxphyaddr=46,
                    guest_ad_checked=self.config.guest_ad_checked)
        self.v.ept = eptp.ept
        self.v.ept.write_ad = 1
        self.v.vmcs.secondary |= SECONDARY_EPT
        self.v.vmcs.eptp = eptp.value

    cdef _hardware(self, state):
        # the registers under which the processor walks shadow tables
        return state.replace(cr0=state.cr0 | 1 << 16, efer=state.efer | 1 << 11, cr3=0,
                             cr4=state.cr4 & ~(1 << 7 | 1 << 17 | 1 << 22 | 1 << 24))

    def __dealloc__(self):
        irq_free(&self.irq)
        kernel_free(&self.kernel)
        mmu_free(&self.kvm.mmu)

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
            done = run_events(&self.loop, &op[0], &size[0], &addr[0], n, to)
        self.running = False
        if self.v.abort:
            self._raise(first + done)
        return done

    cdef _raise(self, uint64_t n):
        cdef int why = self.v.abort
        address = self.v.abort_address
        self.v.abort = ABORT_NONE
        if why == ABORT_PYTHON:
            raised, self.raised = self.raised, None
            raise raised
        if why == ABORT_ADDRESS:
            raise TraceError(f"event {n}: {address:#x} is not an address of a user program, which end at "
                             "0x800000000000; select or mask the addresses of the program")
        if why == ABORT_PROCESS:
            raise TraceError(f"event {n}: process number {address} is not below {1 << 20}; number processes from 0")
        if why == ABORT_OP:
            raise TraceError(f"event {n}: unknown operation or exit reason {address}; see fastmmu.Op and ExitReason")
        if why == ABORT_GUEST_MEMORY:
            raise OutOfMemoryError(f"event {n}: guest memory of {address:#x} bytes is used up; raise Config(memory=)")
        if why == ABORT_TABLES or why == ABORT_HOST_MEMORY:
            raise OutOfMemoryError(f"event {n}: no room for the VMM's tables; raise Config(memory=)")
        if why == ABORT_APIC:
            raise TraceError(f"event {n}: the guest has no APIC that takes this (addr {address:#x}); set Config(tpr=), "
                             "and give registers values that they accept")
        if why == ABORT_BUS:
            raise BusError(f"event {n}: a paging structure for {address:#x} lies outside memory")
        if why == ABORT_NO_PROGRESS:
            raise PolicyError(f"event {n}: the access to {address:#x} exits again and again; its handler must map the "
                              "page or return Action.EMULATED")
        if why == ABORT_ENTRY and address != ERROR_CONTROL_FIELDS:
            raise StateError(f"event {n}: VM entry failed with exit reason {address:#x}, qualification "
                             f"{self.v.vmcs.exit_qualification}: no processor takes such guest state (vmx.md §3.2), "
                             f"cr3={self.v.hw.cr3:#x}; give the Machine registers without reserved bits")
        if why == ABORT_ENTRY:
            raise PolicyError(f"event {n}: VM entry failed with VM-instruction error {address}: the controls of the "
                              "VMCS contradict each other (vmx.md §3.1)")
        if why == ABORT_MISCONFIG:
            raise PolicyError(f"event {n}: EPT misconfiguration at guest-physical {address:#x}")
        raise FastmmuError(f"event {n}: the guest kernel has no answer to the fault at {address:#x} (code {why})")

    def stopped(self):
        """Raise what stopped the guest; for the parts of a machine."""
        self._raise(0)

    # ---- what a policy may do -----------------------------------------------------------------------------

    def default(self):
        """Handle the exit under way as KVM does; returns the :class:`Action`. For use in a policy's handler."""
        cdef int action
        if not self.handling:
            raise PolicyError("no VM exit is under way: Machine.default() is for the handlers of a policy")
        with nogil:
            action = kvm_default(&self.kvm, &self.v)
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
        stored = (int(self.v.store_bytes), int(self.v.store_value)) if self.v.store_bytes else None
        return int(self.v.emulated), stored

    @property
    def vmcs(self):
        """The VMCS as a dict: controls and exit information, by the names of vmx.md §1; empty without a VMM."""
        return dict(self.v.vmcs) if self.v.guest else {}

    @property
    def hw_cr3(self):
        """CR3 of the processor while the guest runs: the guest's value; under shadow paging the shadow root, hpa."""
        return self.v.hw.cr3

    # ---- a bare guest ---------------------------------------------------------------------------------------

    @property
    def guest_memory(self):
        """Guest-physical memory as a :class:`PhysicalMemory` of its own, without a copy."""
        base = self.loop.guest_base
        return PhysicalMemory.from_array(self.memory.u8[base:base + self.guest.nbytes])

    def access(self, uint64_t la, access="r", *, bint user=False):
        """One access of a bare guest: :class:`Access`, with the guest-physical address or the #PF.

        A fetch from the APIC-access page exits. Its registers are read and written through :attr:`apic`, which knows
        the size of an access.
        """
        cdef uint64_t hpa = 0
        cdef int acc = access_code(access), outcome
        self._guest_runs()
        self._canonical(la)
        self.v.c.ops[acc] += 1
        outcome = vcpu_access(&self.v, la, acc, user, &hpa)
        if outcome == DONE_OK and acc == ACC_X and hpa >> 12 == self.v.vmcs.apic_access_address >> 12:
            with nogil:
                outcome = fetched_from_apic(&self.v, &self.irq.virt, hpa)
        return self._outcome(la, outcome, hpa)

    def store(self, uint64_t la, uint64_t value):
        """A 64-bit store by the guest's supervisor: :class:`Access`. Page tables are edited this way."""
        cdef uint64_t hpa = 0
        cdef int outcome
        if la & 7:
            raise StateError(f"a store of 8 bytes at {la:#x} is not aligned; use a multiple of 8")
        self._guest_runs()
        self._canonical(la)
        outcome = vcpu_store(&self.v, la, value, &hpa)
        return self._outcome(la, outcome, hpa)

    cdef _outcome(self, la, int outcome, uint64_t hpa):
        if outcome == DONE_OK:
            return Access(self._gpa(hpa), None, None)
        if outcome == DONE_EMULATED:
            return Access(None if self.v.emulated == ONES else int(self.v.emulated), None, None)
        if outcome == DONE_PF:
            return Access(None, self.v.error_code, self.v.cr2)
        if outcome == DONE_ABORT:
            self._raise(0)
        raise StateError(f"linear address {la:#x} is not canonical")

    cdef _gpa(self, uint64_t hpa):
        cdef int i
        cdef Slot *slot
        for i in range(self.kvm.mmu.slots.n):
            slot = &self.kvm.mmu.slots.slot[i]
            if hpa - slot.hpa < slot.npages << 12:
                return int((slot.base_gfn << 12) + (hpa - slot.hpa))
        return int(hpa - self.loop.guest_base)

    cdef _guest_runs(self):
        if self.handling:
            raise PolicyError("the guest stands still while a VM exit is handled: its instructions cannot run in a "
                              "handler; return an Action first")
        if self.running:
            raise PolicyError("another thread runs this machine; one machine is one CPU, give each thread its own")
        self.v.now += 1                         # each call is an event, where nothing else numbers them

    cdef _canonical(self, uint64_t la):
        # the TLB looks at bits 56:12 only: what is not canonical must not reach it
        if not canonical(la, self.v.hw.la_bits):
            raise StateError(f"linear address {la:#x} is not canonical")

    def mov_cr3(self, uint64_t value):
        """MOV to CR3 by the guest; bit 63 keeps the PCID's translations (CR4.PCIDE = 1).

        :raises StateError: reserved bits are set (#GP).
        """
        cdef int outcome
        cdef uint64_t valid = self.v.hw.frame | 0xFFF
        self._guest_runs()
        if self.kvm.guest.pcid_on if self.kvm.shadow else self.v.hw.pcid_on:
            valid |= 1ULL << 63
        if value & ~valid:
            raise StateError(f"cr3={value:#x} has reserved bits {value & ~valid:#x}")
        outcome = vcpu_mov_cr3(&self.v, value)
        if outcome != DONE_OK:
            self._raise(0)

    def mov_cr4(self, uint64_t value):
        """MOV to CR4 by the guest, which stays in 4-level paging.

        :raises StateError: reserved bits, or a paging mode that the machine does not run (#GP).
        """
        cdef GuestState state = self.state.replace(cr4=value, cr3=0)
        self._guest_runs()
        if state.paging.levels != 4:
            raise StateError(f"cr4={value:#x}: the machine runs guests with 4-level paging, not mode {state.mode.name}")
        if vcpu_mov_cr4(&self.v, self.state.cr4, value) != DONE_OK:
            self._raise(0)
        if self._load_state(state):
            self._raise(0)

    cdef int _load_state(self, GuestState state) except -2:
        # registers other than CR3 and AC are new; nonzero where no table page is left for a new root
        cdef GuestState hardware
        cdef Paging was = self.v.hw
        self.state = state
        self.v.vmcs.cr4_shadow = state.cr4
        if self.kvm.shadow:
            hardware = self._hardware(state)
            return kvm_new_role(&self.kvm, &self.v, &state.paging, &hardware.paging)
        self.v.hw = state.paging
        self.v.hw.cr3 = was.cr3
        self.v.hw.root = was.root
        self.v.hw.pcid = was.pcid
        self.v.hw.ac = was.ac
        self.v.hw.write_ad = 1
        vcpu_derive(&self.v)
        return 0

    def mov_from_cr4(self):
        """The guest reads CR4; AMD's KVM intercepts that."""
        if self.config.vendor == "amd":
            self.exit_instruction(EXIT_CR_ACCESS)
        return int(self.state.cr4)

    def exit_instruction(self, uint64_t reason):
        """An instruction that exits unconditionally, such as CPUID (10) or OUT (30); `reason`: basic exit reason."""
        self._guest_runs()
        if exit_instruction(&self.loop, reason) != DONE_OK:
            self._raise(0)

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
        vmm.v = &self.v
        return vmm

    def invlpg(self, uint64_t la):
        """INVLPG by the guest."""
        cdef int outcome
        self._guest_runs()
        outcome = vcpu_invlpg(&self.v, la)
        if outcome != DONE_OK:
            self._raise(0)

    def _apic_counters(self):
        if self.apic is None:
            return {}
        return {f"apic_{name}": value for name, value in dict(self.irq.c).items()}

    # ---- results --------------------------------------------------------------------------------------------

    def counters(self):
        """All counters as a dict of int; see :class:`fastmmu.machine.result.Result`."""
        return self._counters(&self.v.c, &self.v.tlb.c)

    cdef _counters(self, Counters *c, TlbCounters *t):
        l1i = t.lookups[L1I] - t.misses[L1I]
        l1d = t.lookups[L1D] + t.lookups[L1S] - t.misses[L1D] - t.misses[L1S]
        return {
            "accesses": c.ops[0] + c.ops[1] + c.ops[2] + c.ops[3],
            "reads": c.ops[0], "writes": c.ops[1], "modifies": c.ops[2], "fetches": c.ops[3],
            "page_crossings": c.page_crossings, "kernel_accesses": c.kernel_accesses, "retries": c.retries,
            "l1d_hits": l1d, "l1i_hits": l1i,
            "l1d_misses": t.misses[L1D] + t.misses[L1S], "l1i_misses": t.misses[L1I],
            "stlb_hits": sum(t.hits[L2]) + sum(t.hits[L2I]), "tlb_misses": c.tlb_misses,
            "walks": c.walks, "guest_walk_refs": c.guest_walk_refs, "ept_walk_refs": c.ept_walk_refs,
            "ad_writes": c.ad_writes, "guest_faults": c.guest_faults, "pages_touched": c.pages_touched,
            "collapses": c.collapses, "vm_exits": c.vm_exits,
            "exits_by_reason": {_REASONS[i]: c.exits[i] for i in range(N_REASONS) if c.exits[i]},
            "pf_fixed": c.pf_fixed, "pf_guest": c.pf_guest, "pf_emulate": c.pf_emulate, "pf_spurious": c.pf_spurious,
            "ept_build": c.ept_build, "ept_spurious": c.ept_spurious, "mmio": c.mmio,
            "invvpid": c.invvpid, "invept": c.invept, "host_accesses": c.host_accesses, "host_misses": c.host_misses,
            "remote_flushes": self.kvm.remote_flushes, "flush_requests": self.kvm.flush_requests,
            "ipis": self.kvm.ipis, "cr3_switches": c.cr3_switches, "invlpgs": c.invlpgs,
            "invpcids": c.invpcids, "unmaps": c.unmaps, "interrupts": c.interrupts,
            "exit_instructions": c.exit_instructions,
            **self._apic_counters(),
            "vmm_tables": self.kvm.mmu.counters.tables_made - self.kvm.mmu.counters.tables_zapped,
            "vmm_tables_made": self.kvm.mmu.counters.tables_made,
            "vmm_entries_filled": self.kvm.mmu.counters.entries_filled,
            "vmm_entries_zapped": self.kvm.mmu.counters.entries_zapped,
            "vmm_write_protected": self.kvm.mmu.counters.write_protected,
        } | ({} if self.missing_flushes is None else {
            "uses_compared": self.missing_flushes.uses, "stale_uses": self.missing_flushes.found})
