"""What stopped a machine, as an exception that says what to do."""

from libc.stdint cimport uint64_t

from fastmmu.arch.vmx cimport ERROR_CONTROL_FIELDS, EXIT_INTERRUPT_WINDOW, EXIT_TPR_BELOW_THRESHOLD
from fastmmu.cpu.interrupts cimport NUMBER_CR8, Interrupts
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_APIC, ABORT_APIC_ADDR, ABORT_APIC_GP, ABORT_APIC_PF, ABORT_APIC_TABLE, ABORT_AWAY, ABORT_BUS,
    ABORT_ENTRY, ABORT_GUEST_FAULT, ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, ABORT_IDENTITY, ABORT_INJECTED,
    ABORT_MISCONFIG, ABORT_NO_PROGRESS, ABORT_OP, ABORT_PROCESS, ABORT_ROOT, ABORT_TABLES, ABORT_VECTOR, Vcpu,
)
from fastmmu.machine.guest_kernel cimport ABORT_FORK, ABORT_PLACE, ABORT_PLACE_LOW, ABORT_PLACE_OUTSIDE
from fastmmu.paging.guest cimport reachable

from fastmmu.cpu.apic_py import cr8_refusal, refusal
from fastmmu.errors import (
    BusError, ConfigError, EventError, FastmmuError, OutOfMemoryError, PolicyError, StateError, TraceError,
)
from fastmmu.exits import REASON_NAMES
from fastmmu.ops import Op

# Abort: the exception and its text, of which "event N: " is the beginning. ABORT_PYTHON: the handler's own exception
_STOPS = {
    ABORT_BUS: (BusError, "a paging structure for {address:#x} lies outside memory"),
    ABORT_NO_PROGRESS: (
        PolicyError, "the access to {address:#x} exits again and again ({exit}); its handler must map the page or "
        "return Action.EMULATED"),
    ABORT_GUEST_MEMORY: (
        OutOfMemoryError, "guest memory of {address:#x} bytes is used up; raise Config(memory=)"),
    ABORT_TABLES: (OutOfMemoryError, "no room for the VMM's tables; raise Config(memory=)"),
    ABORT_ADDRESS: (
        TraceError, "{address:#x} is not an address of a user program, which end at 0x800000000000; select or mask the "
        "addresses of the program"),
    ABORT_MISCONFIG: (PolicyError, "EPT misconfiguration at guest-physical {address:#x}"),
    ABORT_GUEST_FAULT: (
        StateError, "a fault at {address:#x} that no page answers: registers or tables of the guest kernel were "
        "changed from outside; leave them to it, or make the Machine with guest_kernel=False"),
    ABORT_INJECTED: (
        PolicyError, "the handler of {exit} injected #GP(0){there}, which nothing in the guest kernel answers; return "
        "Action.RETRY, EMULATED or INJECT_PAGE_FAULT"),
    ABORT_OP: (TraceError, "unknown operation or exit reason {address}; see fastmmu.Op and ExitReason"),
    ABORT_HOST_MEMORY: (OutOfMemoryError, "no room for the VMM's tables; raise Config(memory=)"),
    ABORT_ENTRY: (
        StateError, "VM entry failed with exit reason {address:#x}, qualification {qualification}: no processor takes "
        "such guest state (vmx.md §3.2), cr3={cr3:#x}; give the Machine registers without reserved bits"),
    ABORT_VECTOR: (TraceError, "interrupt vector {address} is not below 256"),
    ABORT_PROCESS: (TraceError, "process number {address} is not below 1048576; number processes from 0"),
    ABORT_APIC: (
        TraceError, "the guest has no APIC for {op}; give it one with Config(tpr=), or leave such events out"),
    ABORT_APIC_ADDR: (
        TraceError, "{address:#x} is no address of such an event; a DEVICE_INTERRUPT has its vector and, where it is "
        "level-triggered, bit 8, an INTERRUPT_FLAG 0 or 1"),
    ABORT_APIC_GP: (EventError, "{refused}"),
    ABORT_APIC_PF: (
        EventError, "#PF at {address:#x}, error code {error_code:#x}: the guest does not map its APIC there; map "
        "guest-physical 0xfee00000 at Machine.apic.address"),
    ABORT_AWAY: (
        StateError, "the host is taking guest-physical page {address:#x} away, its fault begins anew until that has "
        "ended; call Vmm.invalidate_range_end, then repeat the access"),
    ABORT_APIC_TABLE: (
        PolicyError, "a paging structure for {address:#x} lies on the APIC-access page, with a present entry; KVM "
        "would emulate the instruction, which takes its registers. Keep page tables off guest-physical 0xfee00000, or "
        "give a Policy with on_apic_access"),
    ABORT_IDENTITY: (
        ConfigError, "the guest turns to cr0={address:#x}, without paging, and there is no identity table for it: "
        "guest memory covers its place, Config(identity_map=); give at most 3G, or unrestricted_guest=True"),
    ABORT_PLACE: (
        TraceError, "no page is placed at {address:#x} so: a PLACE of size 0 has the linear address, the one behind "
        "it, of size 12 or 21, the physical address; both are multiples of the page's bytes"),
    ABORT_PLACE_OUTSIDE: (
        TraceError, "the page placed at physical {address:#x} is not in guest memory, or where the guest kernel has "
        "its own pages, at its end; raise Config(memory=), --memory"),
    ABORT_PLACE_LOW: (
        ConfigError, "the trace says where pages lie (Op.PLACE), and the guest kernel has its own pages there; give it "
        'others, Config(kernel_memory="high")'),
    ABORT_FORK: (TraceError, "a FORK to process {address}, which is there already; give the child a new number"),
    ABORT_ROOT: (
        BusError, "the top table for cr3={address:#x} lies outside memory: a triple fault, by which KVM ends a "
        "shadowed guest; load a CR3 that points to memory"),
}
_CONTROL_FIELDS = (
    PolicyError, "VM entry failed with VM-instruction error {address}: the controls of the VMCS contradict each other "
    "(vmx.md §3.1)")
_NO_ACCESS = (
    PolicyError, "the guest does not come to its next instruction: {exit} follows each VM entry; its handler must take "
    "the cause away")
_AT_ONCE = EXIT_TPR_BELOW_THRESHOLD, EXIT_INTERRUPT_WINDOW      # VM exits before any instruction
_UNNAMED = (FastmmuError, "stopped at {address:#x} for a reason without a name, {abort}; please report this")


cdef object refused(const Interrupts *irq):
    # why the instruction that ended in #GP did
    value = irq.v.store_value
    if irq.number == NUMBER_CR8 and value >> 4:
        return cr8_refusal(value)
    if irq.number == NUMBER_CR8 or not irq.number and reachable(irq.la, irq.v.hw.la_bits):
        return "#GP(0): the handler of the exit injected it; return Action.EMULATED, and it is done"
    if not irq.number:
        return "#GP(0): the address of the APIC's page is not canonical; see Machine.apic.address"
    return refusal(irq.number, value if irq.writes else None, irq.apic.base, irq.v.r.maxphyaddr)


cdef object stop(const Vcpu *v, const Interrupts *irq, uint64_t n):
    # the exception for v.abort, which is none of Python's own; irq: NULL where there is no APIC; n: number of the event
    kind, text = _STOPS.get(v.abort, _UNNAMED)
    address = v.abort_address
    if v.abort == ABORT_ENTRY and v.abort_address == ERROR_CONTROL_FIELDS:
        kind, text = _CONTROL_FIELDS
    if v.abort == ABORT_NO_PROGRESS and v.vmcs.exit_reason in _AT_ONCE:
        kind, text = _NO_ACCESS
    if not v.abort:                             # a fault that nothing in the guest kernel answers
        (kind, text), address = _STOPS[ABORT_GUEST_FAULT], v.cr2
    fields = {"exit": REASON_NAMES[v.vmcs.exit_reason & 0xFFFF], "abort": v.abort, "address": address,
              "qualification": v.vmcs.exit_qualification, "cr3": v.vmcs.guest_cr3, "error_code": v.error_code,
              "there": f" into the access to {address:#x}" if address else ""}
    if v.abort == ABORT_APIC:
        fields["op"] = Op(v.abort_address).name
    if v.abort == ABORT_APIC_GP:
        fields["refused"] = refused(irq)
    return kind(f"event {n}: {text.format_map(fields)}")
