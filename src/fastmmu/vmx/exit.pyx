"""What stops a guest: `Exit`, a VM exit, and `GuestEvent`, an event that its own IDT takes."""

from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.vmentry cimport ENTRY_FAILURE
from fastmmu.vmx.entry cimport (
    FAILED_ACTIVITY, FAILED_EVENT, FAILED_HOST, FAILED_INTERRUPTIBILITY, FAILED_LINK, FAILED_MSR, FAILED_RFLAGS,
    FAILED_STATE,
)
from fastmmu.vmx.processor cimport Event, Processor

from fastmmu.errors import WrongTypeError
from fastmmu.exits import ExitReason, Qualification

_REASONS = {int(reason): reason for reason in ExitReason}
_FIELDS = ("exit_reason", "qualification", "guest_physical", "guest_linear", "interruption_info", "error_code",
           "vectoring_info", "vectoring_error_code", "instruction_length", "instruction_info", "operand", "value")
_SHOWN = ("guest_physical", "guest_linear", "interruption_info", "error_code", "vectoring_info",
          "vectoring_error_code", "operand", "value")
_CHECKS = {i: f"C{i + 1}" for i in range(18)} | {FAILED_STATE + i: f"G{i}" for i in range(1, 7)} | {
    FAILED_EVENT: "event injection", FAILED_HOST: "host CR0", FAILED_HOST + 1: "host CR4", FAILED_HOST + 2: "host CR3",
    FAILED_HOST + 3: "host PAT", FAILED_HOST + 4: "host EFER", FAILED_HOST + 5: "host address-space size",
    FAILED_RFLAGS: "RFLAGS", FAILED_INTERRUPTIBILITY: "interruptibility", FAILED_ACTIVITY: "activity",
    FAILED_LINK: "VMCS link pointer", FAILED_MSR: "MSR load",
}
_TYPES = ("external interrupt", "reserved", "NMI", "hardware exception", "software interrupt",
          "privileged software exception", "software exception", "other event")


class GuestEvent(NamedTuple):
    """An interrupt or exception that the processor delivered to the guest through its IDT.

    What the handler does is the caller's: its operations are run next, or none. ``vector``; ``type`` as in an
    interruption-information field, "external interrupt", "NMI", "hardware exception", ...; ``error_code``, None where
    the event has none; ``cr2`` of a #PF, else None; ``done``: operations done before it. The one that faulted is not
    done, and is run again by the next ``run()``, unless ``skip()`` leaves it out. Behind an interrupt RFLAGS.IF is 0,
    as behind an interrupt gate, until an operation INTERRUPT_FLAG.
    """

    vector: int
    type: str
    error_code: int | None
    cr2: int | None
    done: int


cdef class Exit:
    """A VM exit, or VM entry that failed with one: the exit-information fields of the VMCS (vmx.md §5) at that moment.

    ``reason`` (:class:`fastmmu.ExitReason`), ``entry_failure`` (bit 31 of the field ``exit_reason``),
    ``qualification``, ``guest_physical``, ``guest_linear``, ``interruption_info`` and ``error_code`` (of the exception
    or interrupt that exited), ``vectoring_info`` and ``vectoring_error_code`` (event under delivery),
    ``instruction_length``, ``instruction_info``. Fields that the reason does not define are 0.

    Registers that the VMM would read from the guest: ``operand`` (source of MOV to a control register, ECX of RDMSR and
    WRMSR, type of INVPCID, what a write to the APIC stores), ``value`` (EDX:EAX of WRMSR, descriptor of INVPCID).
    ``done``: operations done. ``failed``: checks of VM entry that failed (vmx.md §3.2), which no processor tells.

    Threads: immutable, share it.
    """

    def __init__(self):
        raise WrongTypeError("an Exit is what vmlaunch(), vmresume() and run() return; it is not made by hand")

    @property
    def reason(self):
        """Basic exit reason."""
        return _REASONS[self.exit_reason & 0xFFFF]

    @property
    def entry_failure(self):
        """The exit came in place of VM entry: no guest ran."""
        return self.exit_reason & ENTRY_FAILURE != 0

    @property
    def failed(self):
        """Checks of guest state that failed, as ``("G3",)``; () where the guest was entered."""
        return failed_checks(self.checks)

    def __repr__(self):
        parts = [f"qualification={self.qualification:#x}"]
        if self.reason == ExitReason.EPT_VIOLATION:
            parts[0] += f" {Qualification(self.qualification & 0xFFF).name}"
        parts += [f"{name}={getattr(self, name):#x}" for name in _SHOWN if getattr(self, name)]
        if self.entry_failure:
            parts.append(f"entry failed: {', '.join(self.failed)}")
        return f"<Exit {self.reason.name}, {', '.join(parts)}, done={self.done}>"

    def __eq__(self, other):
        if not isinstance(other, Exit):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in (*_FIELDS, "done"))

    def __hash__(self):
        return hash((self.exit_reason, self.qualification, self.done))


cdef Exit exit_of(const Processor *p):
    cdef Exit e = Exit.__new__(Exit)
    e.exit_reason = p.cpu.vmcs.exit_reason
    e.qualification = p.cpu.vmcs.exit_qualification
    e.guest_physical = p.cpu.vmcs.guest_physical_address
    e.guest_linear = p.cpu.vmcs.guest_linear_address
    e.interruption_info = p.cpu.vmcs.exit_interruption_info
    e.error_code = p.cpu.vmcs.exit_interruption_error
    e.vectoring_info = p.rest.vectoring
    e.vectoring_error_code = p.rest.vectoring_error
    e.instruction_length = p.rest.exit_length
    e.instruction_info = p.rest.exit_instruction
    e.operand = p.cpu.vmcs.operand
    e.value = p.exit_value
    e.done = p.i
    e.checks = p.failed
    return e


cdef object event_of(Processor *p):
    # the first that waits, which waits no more
    cdef Event first = p.event[0]
    cdef uint32_t i
    p.n_events -= 1
    for i in range(p.n_events):
        p.event[i] = p.event[i + 1]
    info = first.info
    vector = info & 0xFF
    coded = info >> 11 & 1
    fault = vector == 14 and info >> 8 & 7 == 3
    return GuestEvent(vector, _TYPES[info >> 8 & 7], first.error_code if coded else None,
                      first.cr2 if fault else None, p.i)


cdef tuple failed_checks(uint64_t failed):
    return tuple([name for bit, name in _CHECKS.items() if failed >> <int> bit & 1])
