"""A logical processor with VMX, for Python: `Cpu`."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport flag, instance, linear_address, many, within, word, words_out
from fastmmu.arch.bits cimport FRAME, ONES
from fastmmu.arch.vmx cimport N_REASONS
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.inv_operands cimport (
    IN_64_BIT, INV_DONE, INV_UD, VMX_ROOT, Executing, InvOperands, invept_check, invvpid_check,
)
from fastmmu.cpu.vcpu cimport ABORT_NONE
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.invalidate cimport inv_invept, inv_invvpid
from fastmmu.threads.turns cimport Pace, pace_begin
from fastmmu.tlb.tlb cimport TLB
from fastmmu.vmx.entry cimport processor_enter, processor_exit
from fastmmu.vmx.exit cimport event_of, exit_of, failed_checks
from fastmmu.vmx.guest cimport guest_run
from fastmmu.vmx.operations cimport (
    BAD_HAS_OWN, BAD_NO_INSTRUCTION, BAD_OF_TRACES, BAD_SIZE, BAD_UNKNOWN, operations_check,
)
from fastmmu.vmx.processor cimport (
    END_BUS, END_DONE, END_EXIT, END_INVALID, END_NOT_MODELLED, ERROR_ENTRY_CONTROLS, ERROR_ENTRY_HOST,
    ERROR_INVALIDATION, REVISION, RUN_ALL, RUN_EVENT, RUN_EXIT, Processor,
)
from fastmmu.vmx.region cimport field_check, field_read, field_slot, field_width, field_write, region_clear, region_load

from collections.abc import Mapping
import numpy as np

from fastmmu.errors import (
    VM_INSTRUCTION_ERRORS, BusError, ConfigError, PolicyError, StateError, VmFailInvalid, VmFailValid, WrongTypeError,
)
from fastmmu.exits import ExitReason
from fastmmu.ops import Op
from fastmmu.vmx.capabilities import Capabilities
from fastmmu.vmx.checks import CHECKS, EXISTS
from fastmmu.vmx.vmcs import REVISION as _REVISION

assert _REVISION == REVISION

_WORDS = {1: "pin-based controls", 2: "primary controls", 3: "secondary controls"}


cdef column(values, str name, kind):
    # of the operations, as a contiguous array
    most = int(np.iinfo(kind).max)
    if not isinstance(values, np.ndarray):
        items = [values] if hasattr(values, "__index__") else many(name, values)
        return np.array([within(name, value, 0, most) for value in items], dtype=kind)
    if values.dtype == kind and values.ndim == 1 and values.flags.c_contiguous:
        return values
    if values.dtype.kind not in "iu":
        raise WrongTypeError(f"{name} has dtype {values.dtype}; give an array of {kind.__name__}")
    if values.ndim == 1 and (values.size == 0 or 0 <= values.min() <= values.max() <= most):
        return np.ascontiguousarray(values, dtype=kind)
    raise StateError(f"{name}: give one row of integers that fit {kind.__name__}")


cdef class Cpu:
    """A logical processor in VMX operation: its VMX instructions are methods, its guest's operations are run by
    :meth:`run`. The VMM is the caller; nothing of KVM is in between.

    It begins in VMX root operation, in 64-bit mode at CPL 0, without a current VMCS. An instruction that fails raises
    :class:`fastmmu.errors.VmFail` (VmFailInvalid, VmFailValid) with the VM-instruction error number and changes nothing
    else. Sources: SDM volume 3, chapters on VMX; vmx.md.

    RIP is not modelled, but stood in for: GUEST_RIP is the number of the next operation, counted from 0 in what was
    last given to :meth:`run`, and each instruction is 1 byte long. So a VMM that adds VM_EXIT_INSTRUCTION_LENGTH to
    GUEST_RIP goes on behind an operation that it has emulated, as on a processor; :meth:`skip` does that. The CPL is
    the DPL of SS. What goes through the guest's IDT comes back as a :class:`GuestEvent`.

    :param memory: :class:`fastmmu.PhysicalMemory`, host-physical and writable: regions, tables and the guest's memory.
    :param tlb: a :class:`fastmmu.TLB`, that of a hyperthread (:meth:`TLB.hyperthreads`) or one that several processors
        share whole; or what one is made of: the name of a preset, a Geometry.
    :param caps: :class:`Capabilities`. :param vmxon: address of the VMXON region, which no VMCS may have; None:
        elsewhere.
    :raises ConfigError: memory that is read-only. :raises StateError: an address that is no VMXON region.

    Threads: one thread runs it, without the GIL; its instructions and a second run are refused meanwhile (PolicyError).
    Its TLB is used in turns. A signal ends :meth:`run` within half a second, and ``run()`` can go on.
    """

    def __cinit__(self, PhysicalMemory memory not None, *, tlb="skylake", caps=None, vmxon=None):
        cdef Processor *p = &self.p
        if not memory.writable or memory.mem.segments != NULL:
            raise ConfigError("a processor needs writable memory without holes; give it a copy")
        self.caps = Capabilities() if caps is None else instance("caps", caps, Capabilities)
        self.memory = memory
        self.tlb = tlb if isinstance(tlb, TLB) else TLB(tlb)
        memset(p, 0, sizeof(Processor))
        p.cpu.mem = &memory.mem
        p.cpu.tlb = self.tlb.t
        p.cpu.handler = processor_exit
        p.cpu.apic = &p.apic
        p.current = p.vmxon = ONES
        p.apic_la = APIC_BASE
        self._set_caps()
        if vmxon is not None:
            p.vmxon = word("vmxon", vmxon)
            if p.vmxon & 0xFFF or p.vmxon >> p.caps.maxphyaddr:
                raise StateError(f"vmxon={vmxon:#x}: give a multiple of 4096 below 2**{self.caps.maxphyaddr}")
        p.cpu.r.cr0, p.cpu.r.cr4, p.cpu.r.efer = 0x80000031, 0x2020, 0xD00     # 64-bit mode, until an exit loads others
        p.cpu.r.pat = 0x0007040600070406
        p.cpu.r.maxphyaddr = p.caps.maxphyaddr
        p.cpu.r.page1gb, p.cpu.r.pse36 = 1, min(p.caps.maxphyaddr, 40)

    def __init__(self, *args, **named):
        if self.made:
            raise StateError("this Cpu is made already; make another one")
        self.made = True

    cdef _set_caps(self):
        cdef Processor *p = &self.p
        c = self.caps
        p.caps.pin_based_must, p.caps.pin_based = c.pin_based
        p.caps.primary_must, p.caps.primary = c.primary
        p.caps.secondary_must, p.caps.secondary = c.secondary
        p.caps.tertiary_must, p.caps.tertiary = c.tertiary
        p.caps.vm_exit_must, p.caps.vm_exit = c.vm_exit
        p.caps.vm_entry_must, p.caps.vm_entry = c.vm_entry
        p.caps.vm_functions = c.vm_functions
        p.caps.cr0_must, p.caps.cr0_may = c.cr0
        p.caps.cr4_must, p.caps.cr4_may = c.cr4
        p.caps.maxphyaddr = c.maxphyaddr
        p.caps.ept = c.ept_vpid
        p.vmwrite_any = bool(c.vmwrite_any)
        for i in range(sizeof(p.exists)):
            p.exists[<int> i] = 1
        for field, (name, bit) in EXISTS.items():
            p.exists[field_slot(field)] = getattr(c, name)[1] >> bit & 1

    # ---- what instructions end in ----------------------------------------------------------------------------

    cdef _root(self):
        if self.running:
            raise PolicyError("another thread runs this processor; give each thread its own")
        if self.p.in_guest:
            raise StateError("the processor is in VMX non-root operation: the VMM runs after a VM exit. Run an "
                             "operation that exits, as run(Op.EXIT, 0, ExitReason.CPUID)")

    cdef _end(self, int end, str name, str detail):
        # raises, unless it is done
        cdef Processor *p = &self.p
        if end == END_DONE:
            return
        if end == END_INVALID:
            raise VmFailInvalid(name, None, detail)
        if end == END_BUS:
            raise BusError(f"{name}: {int(p.missing):#x} lies outside memory of {self.memory.nbytes:#x} bytes")
        if end == END_NOT_MODELLED:
            if p.unmodelled >> 32 == 4:
                raise StateError(f"{name}: MSRs that VM exits store or load are not modelled; write 0 to "
                                 "VM_EXIT_MSR_STORE_COUNT and VM_EXIT_MSR_LOAD_COUNT")
            raise StateError(f"{name}: the checks pass, but bits {p.unmodelled & 0xFFFFFFFF:#x} of the "
                             f"{_WORDS[p.unmodelled >> 32]} are not carried out by this model; clear them")
        if p.current == ONES:
            raise VmFailInvalid(name, None, detail or VM_INSTRUCTION_ERRORS[end])
        p.rest.instruction_error = end
        failed = failed_checks(p.failed) if end == ERROR_ENTRY_CONTROLS or end == ERROR_ENTRY_HOST else ()
        detail = detail or "; ".join([f"{check} ({CHECKS[check]})" for check in failed])
        raise VmFailValid(name, end, detail, failed)

    cdef _entered(self, int end, str name):
        if end == END_DONE:
            return None
        if end == END_EXIT:
            return exit_of(&self.p)
        self._end(end, name, "")

    # ---- VMCS regions, fields --------------------------------------------------------------------------------

    def vmclear(self, region):
        """VMCLEAR: writes the region back and makes its launch state clear; it is not current any more.

        :param region: its physical address, or a :class:`Vmcs`. :raises VmFail: 2 (address), 3 (VMXON region).
        :raises BusError: the address is valid, and no memory is there.
        """
        cdef uint64_t address = word("region", region)
        self._root()
        self._end(region_clear(&self.p, address), "VMCLEAR", "")

    def vmptrld(self, region):
        """VMPTRLD: makes a region the current VMCS.

        :raises VmFail: 9 (address), 10 (VMXON region), 11 (revision identifier). :raises BusError: no memory is there.
        """
        cdef uint64_t address = word("region", region)
        self._root()
        self._end(region_load(&self.p, address), "VMPTRLD", "")

    def vmptrst(self):
        """VMPTRST: address of the current VMCS, 2**64 - 1 without one."""
        self._root()
        return self.p.current

    def vmread(self, field):
        """VMREAD of a field of the current VMCS, by its encoding (:class:`Field`; + 1 for the high half of 64 bits).

        :raises VmFail: 12, there is no such field.
        """
        cdef uint64_t value = 0
        cdef int end
        if self.p.in_guest or self.running:
            self._root()
        end = field_read(&self.p, word("field", field), &value)
        if end:
            self._end(end, "VMREAD", f"field {field:#x}" if end > 0 else "")
        return value

    def vmwrite(self, field, value):
        """VMWRITE of a field of the current VMCS.

        :raises VmFail: 12, there is no such field; 13, it is read-only (writable with ``Capabilities.vmwrite_any``).
        :raises StateError: the value is wider than the field. A processor would drop the bits beyond.
        """
        cdef uint64_t encoding = word("field", field), written = word("value", value)
        cdef int end, width
        if self.p.in_guest or self.running:
            self._root()
        end = field_check(&self.p, encoding, True)
        if end:
            self._end(end, "VMWRITE", f"field {field:#x}" if end > 0 else "")
        width = field_width(encoding)
        if width < 64 and written >> width:
            raise StateError(f"{value:#x} is wider than the {width} bits of {field!s}")
        field_write(&self.p, encoding, written)

    def vmwrite_all(self, fields):
        """VMWRITE of each field of a mapping, in its order."""
        for field, value in instance("fields", fields, Mapping).items():
            self.vmwrite(field, value)

    # ---- entry, invalidations --------------------------------------------------------------------------------

    def vmlaunch(self, *, mov_ss=False):
        """VMLAUNCH: enters the guest of the current VMCS, whose launch state must be clear.

        :param mov_ss: events are blocked by MOV SS just now. :returns: None, the guest is entered, and :meth:`run` runs
            it; or an :class:`Exit`: one in place of the entry (``entry_failure``, vmx.md §3.2), or before the first
            instruction (TPR below threshold, windows).
        :raises VmFail: 4 (launch state), 7 (controls), 8 (host state), 26 (MOV SS); ``failed`` names the checks.
        :raises StateError: a control that is valid, and not carried out here. :raises BusError: an address that entry
            reads is not in memory.
        """
        cdef bint blocked = flag("mov_ss", mov_ss)
        cdef int end
        self._root()
        self.tlb.turns.enter()
        end = processor_enter(&self.p, False, blocked)
        self.tlb.turns.leave()
        return self._entered(end, "VMLAUNCH")

    def vmresume(self, *, mov_ss=False):
        """VMRESUME: as :meth:`vmlaunch`, of a VMCS that was launched; else error 5."""
        cdef bint blocked
        cdef int end
        if self.p.in_guest or self.running:
            self._root()
        blocked = mov_ss is not False and flag("mov_ss", mov_ss)
        self.tlb.turns.enter()
        end = processor_enter(&self.p, True, blocked)
        self.tlb.turns.leave()
        return None if end == END_DONE else self._entered(end, "VMRESUME")

    def invept(self, type, eptp=0):
        """INVEPT: 1 the mappings of one EPTP, 2 of all.

        :raises VmFail: 28, a type that the processor does not have, or an EPTP that VM entry would refuse.
        """
        cdef Executing x = self._executing()
        cdef InvOperands d
        cdef int end
        d.type, d.low, d.high = word("type", type), word("eptp", eptp), 0
        self._root()
        end = invept_check(&x, d)
        if end == INV_UD:
            raise StateError("INVEPT: #UD, this processor has no such instruction (Capabilities.ept_vpid bit 20)")
        if end != INV_DONE:
            self._end(ERROR_INVALIDATION, "INVEPT", f"type {type}, EPTP {eptp:#x}")
        self.tlb.turns.enter()
        inv_invept(self.p.cpu.tlb, d.type, d.low & FRAME)
        self.tlb.turns.leave()

    def invvpid(self, type, vpid=0, la=0):
        """INVVPID: 0 one linear address of a VPID, 1 a VPID, 2 all, 3 a VPID but for global translations.

        :raises VmFail: 28, a type that the processor does not have, VPID 0, reserved bits, or an address that is not
            canonical.
        """
        cdef Executing x = self._executing()
        cdef InvOperands d
        cdef int end
        d.type, d.low, d.high = word("type", type), word("vpid", vpid), word("la", la)
        self._root()
        end = invvpid_check(&x, d)
        if end == INV_UD:
            raise StateError("INVVPID: #UD, this processor has no such instruction (Capabilities.ept_vpid bit 32)")
        if end != INV_DONE:
            self._end(ERROR_INVALIDATION, "INVVPID", f"type {type}, VPID {vpid:#x}, address {la:#x}")
        self.tlb.turns.enter()
        inv_invvpid(self.p.cpu.tlb, d.type, d.low, d.high)
        self.tlb.turns.leave()

    cdef Executing _executing(self):
        cdef Executing x
        memset(&x, 0, sizeof(Executing))
        x.caps = self.p.caps.ept
        x.mode, x.vmx = IN_64_BIT, VMX_ROOT
        x.maxphyaddr = self.p.caps.maxphyaddr
        x.la_bits = 57 if self.p.cpu.r.cr4 >> 12 & 1 else 48
        x.current_vmcs = self.p.current != ONES
        return x

    # ---- the guest -------------------------------------------------------------------------------------------

    def run(self, op=None, size=None, addr=None, *, data=None):
        """Run the guest until the next VM exit, event for its IDT, or the end of its operations, without the GIL.

        ``run(op, size, addr)`` gives it operations, ``run(batch)`` those of a :class:`fastmmu.Batch`; ``run()`` goes on
        with them, after :meth:`vmresume` or an event. An operation that exited is run again, unless the VMM has skipped
        it; one that exited behind its end (TPR threshold, EOI, APIC write, an interrupt) is not.

        :param op, size, addr: of one operation each (int), or arrays: :class:`fastmmu.Op`, :class:`fastmmu.GuestOp`.
            EXIT is an instruction that exits where its control says so. Of a CR8 access `size` is the number of the
            general register. SWITCH, UNMAP, IPI and TSC_DEADLINE are of machines with a guest kernel.
        :param data: writable array of uint64: accesses of 1, 2, 4 or 8 bytes move data from and to its elements, other
            operations that read put there what they read, APIC_WRITE and MSR_WRITE take their value from it. Without it
            no data move.
        :returns: :class:`Exit`; :class:`GuestEvent`; None, all operations are done.
        :raises StateError: no guest is entered; an operation that is none, naming its index. :raises BusError: a
            paging structure outside memory; the operation is not done.
        """
        cdef Processor *p = &self.p
        cdef Pace pace
        cdef int end
        if self.running:
            raise PolicyError("another thread runs this processor; give each thread its own")
        if op is not None:
            self._operations(op, size, addr, data)
        elif size is not None or addr is not None or data is not None:
            raise StateError("run() takes operations as op, size and addr, or none to go on")
        if not p.in_guest:
            raise StateError("no guest is entered: VMLAUNCH or VMRESUME comes first")
        if p.n_events == 0:
            self.tlb.turns.begin("Cpu.run()")
            self.running = True
            try:
                with nogil:
                    pace_begin(&pace)
                    while True:
                        p.pause = min(p.n, p.i + pace.chunk)
                        end = guest_run(p)
                        if end != RUN_ALL or p.i >= p.n or self.tlb.turns.between(&pace):
                            break
                if end == RUN_ALL:
                    self.tlb.turns.signals()
            finally:
                self.running = False
                self.tlb.turns.end()
            if end == RUN_EXIT:
                return exit_of(p)
            if end == RUN_ALL:
                return None
            if end != RUN_EVENT:
                self._stopped()
        return event_of(p)

    cdef _operations(self, op, size, addr, data):
        cdef Processor *p = &self.p
        cdef const uint8_t[::1] ops, sizes
        cdef const uint64_t[::1] addresses
        cdef uint64_t[::1] values = None
        cdef uint64_t n, bad = 0
        cdef int fault = 0
        if size is None and addr is None:
            if not (hasattr(op, "op") and hasattr(op, "size") and hasattr(op, "addr")):
                raise WrongTypeError("run() takes a Batch, or op, size and addr")
            op, size, addr = op.op, op.size, op.addr
        if data is not None:
            values = words_out("data", data)
        ops, sizes = column(op, "op", np.uint8), column(size, "size", np.uint8)
        addresses = column(addr, "addr", np.uint64)
        n = addresses.shape[0]
        if <uint64_t> ops.shape[0] != n or <uint64_t> sizes.shape[0] != n or (
                data is not None and <uint64_t> values.shape[0] != n):
            raise StateError(f"op, size, addr and data have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}"
                             f"{'' if data is None else f', {values.shape[0]}'}")
        if n:
            with nogil:
                fault = operations_check(&ops[0], &sizes[0], &addresses[0], n, values is not None, &bad)
        if fault == BAD_UNKNOWN:
            raise StateError(f"operation {bad}: {ops[bad]} is none; see fastmmu.Op and fastmmu.GuestOp")
        if fault == BAD_OF_TRACES:
            raise StateError(f"operation {bad}: {Op(ops[bad]).name} needs a guest kernel; give the instructions "
                             "that it runs, as GuestOp.MOV_TO_CR3, Op.INVLPG, Op.APIC_WRITE")
        if fault == BAD_NO_INSTRUCTION:
            raise StateError(f"operation {bad}: EXIT with reason {addresses[bad]}, by which no instruction exits")
        if fault == BAD_HAS_OWN:
            raise StateError(f"operation {bad}: EXIT with reason {ExitReason(addresses[bad]).name}; its instructions "
                             "are operations of their own: Op.INVLPG, Op.MSR_READ, GuestOp.MOV_TO_CR3, ...")
        if fault == BAD_SIZE:
            raise StateError(f"operation {bad}: an access of {sizes[bad]} bytes; with data give 1, 2, 4 or 8")
        self.op, self.size, self.addr, self.data = ops, sizes, addresses, values
        p.op = &ops[0] if n else NULL
        p.size = &sizes[0] if n else NULL
        p.addr = &addresses[0] if n else NULL
        p.data = &values[0] if n and data is not None else NULL
        p.n, p.executing = n, False
        p.i = p.rest.guest_rip = 0

    cdef _stopped(self):
        address = int(self.p.cpu.abort_address)
        self.p.cpu.abort = ABORT_NONE
        raise BusError(f"operation {self.p.i}: a structure that the processor reads for {address:#x} lies outside "
                       f"memory of {self.memory.nbytes:#x} bytes")

    def skip(self):
        """Go on behind the operation that exited or faulted: the VMM has emulated it, or the guest's handler has.

        After a VM exit this adds 1 to GUEST_RIP, as a VMM adds the length of the instruction.

        :raises StateError: the operation under way is done already, or there is none.
        """
        cdef Processor *p = &self.p
        if not p.executing or self.running:
            raise StateError("there is nothing to skip: no operation exited or faulted before its end")
        p.executing = False
        p.i += 1
        if not p.in_guest:
            p.rest.guest_rip += 1

    @property
    def done(self):
        """Operations done of those given last."""
        return min(self.p.i, self.p.n)

    @property
    def in_guest(self):
        """VMX non-root operation: a guest is entered."""
        return bool(self.p.in_guest)

    @property
    def cpl(self):
        """The guest's current privilege level."""
        return self.p.cpl

    @property
    def value(self):
        """What the last operation that reads a register or moves data has read."""
        return self.p.value

    @property
    def pending(self):
        """A virtual interrupt is recognized (apic.md §6), of the guest that was entered last: it is delivered as soon
        as the guest takes interrupts."""
        return bool(self.p.apic.delivery and self.p.apic.pending)

    @property
    def vppr(self):
        """Virtual processor priority, with virtual-interrupt delivery."""
        return self.p.apic.vppr

    @property
    def cr2(self):
        """CR2, which VM entry and exit leave alone."""
        return self.p.cpu.cr2

    @cr2.setter
    def cr2(self, value):
        self.p.cpu.cr2 = word("cr2", value)

    @property
    def apic_linear_address(self):
        """Where the guest sees the page of its APIC, for APIC_READ and APIC_WRITE; 0xFEE00000."""
        return self.p.apic_la

    @apic_linear_address.setter
    def apic_linear_address(self, value):
        cdef uint64_t la = linear_address("apic_linear_address", value)
        if la & 0xFFF:
            raise StateError(f"apic_linear_address={value:#x} is no multiple of 4096")
        self.p.apic_la = la

    def counters(self):
        """Counters since the processor was made, a new dict: those of :mod:`fastmmu.counters` that a processor has."""
        c = &self.p.cpu.c
        exits = {ExitReason(i).name: int(c.exits[<int> i]) for i in range(N_REASONS) if c.exits[<int> i]}
        return {
            "accesses": c.ops[0] + c.ops[1] + c.ops[2] + c.ops[3], "tlb_misses": c.tlb_misses, "walks": c.walks,
            "guest_walk_refs": c.guest_walk_refs, "ept_walk_refs": c.ept_walk_refs, "ad_writes": c.ad_writes,
            "guest_faults": c.guest_faults, "vm_exits": c.vm_exits, "exits_by_reason": exits,
        }

    def __repr__(self):
        where = "in the guest" if self.p.in_guest else "VMX root operation"
        vmcs = "no current VMCS" if self.p.current == ONES else f"current VMCS at {int(self.p.current):#x}"
        return f"<Cpu: {where}, {vmcs}>"
