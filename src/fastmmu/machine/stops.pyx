"""What stopped a machine, as an exception that says what to do."""

from libc.stdint cimport uint64_t

from fastmmu.arch.vmx cimport ERROR_CONTROL_FIELDS
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_APIC, ABORT_APIC_TABLE, ABORT_AWAY, ABORT_BUS, ABORT_ENTRY, ABORT_GUEST_FAULT,
    ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, ABORT_IDENTITY, ABORT_MISCONFIG, ABORT_NO_PROGRESS, ABORT_OP,
    ABORT_PROCESS, ABORT_ROOT, ABORT_TABLES, Vcpu,
)

from fastmmu.errors import BusError, ConfigError, FastmmuError, OutOfMemoryError, PolicyError, StateError, TraceError


cdef object stop(const Vcpu *v, uint64_t n):
    # the exception for v.abort, which is none of Python's own; n: number of the event
    cdef int why = v.abort
    address = v.abort_address
    if why == ABORT_ADDRESS:
        return TraceError(f"event {n}: {address:#x} is not an address of a user program, which end at "
                          "0x800000000000; select or mask the addresses of the program")
    if why == ABORT_PROCESS:
        return TraceError(f"event {n}: process number {address} is not below {1 << 20}; number processes from 0")
    if why == ABORT_OP:
        return TraceError(f"event {n}: unknown operation or exit reason {address}; see fastmmu.Op and ExitReason")
    if why == ABORT_GUEST_MEMORY:
        return OutOfMemoryError(f"event {n}: guest memory of {address:#x} bytes is used up; raise Config(memory=)")
    if why == ABORT_TABLES or why == ABORT_HOST_MEMORY:
        return OutOfMemoryError(f"event {n}: no room for the VMM's tables; raise Config(memory=)")
    if why == ABORT_APIC:
        return TraceError(f"event {n}: the guest has no APIC that takes this (addr {address:#x}); set Config(tpr=), "
                          "and give registers values that they accept")
    if why == ABORT_APIC_TABLE:
        return PolicyError(f"event {n}: a paging structure for {address:#x} lies on the APIC-access page, with a "
                           "present entry; KVM would emulate the instruction, which takes its registers. Keep page "
                           "tables off guest-physical 0xfee00000, or give a Policy with on_apic_access")
    if why == ABORT_IDENTITY:
        return ConfigError(f"event {n}: the guest turns to cr0={address:#x}, without paging, and there is no identity "
                           "table for it: guest memory covers its place, Config(identity_map=); give at most 3G, or "
                           "unrestricted_guest=True")
    if why == ABORT_ROOT:
        return BusError(f"event {n}: the top table for cr3={address:#x} lies outside memory: a triple fault, by which "
                        "KVM ends a shadowed guest; load a CR3 that points to memory")
    if why == ABORT_BUS:
        return BusError(f"event {n}: a paging structure for {address:#x} lies outside memory")
    if why == ABORT_NO_PROGRESS:
        return PolicyError(f"event {n}: the access to {address:#x} exits again and again; its handler must map the "
                           "page or return Action.EMULATED")
    if why == ABORT_ENTRY and address != ERROR_CONTROL_FIELDS:
        return StateError(f"event {n}: VM entry failed with exit reason {address:#x}, qualification "
                          f"{v.vmcs.exit_qualification}: no processor takes such guest state (vmx.md §3.2), "
                          f"cr3={v.vmcs.guest_cr3:#x}; give the Machine registers without reserved bits")
    if why == ABORT_ENTRY:
        return PolicyError(f"event {n}: VM entry failed with VM-instruction error {address}: the controls of the "
                           "VMCS contradict each other (vmx.md §3.1)")
    if why == ABORT_AWAY:
        return StateError(f"event {n}: the host is taking guest-physical page {address:#x} away, its fault begins anew "
                          "until that has ended; call Vmm.invalidate_range_end, then repeat the access")
    if why == ABORT_GUEST_FAULT:
        return StateError(f"event {n}: a fault at {address:#x} that no page answers: registers or tables of the guest "
                          "kernel were changed from outside; leave them to it, or make the Machine with "
                          "guest_kernel=False")
    if why == ABORT_MISCONFIG:
        return PolicyError(f"event {n}: EPT misconfiguration at guest-physical {address:#x}")
    return FastmmuError(f"event {n}: stopped at {address:#x} for a reason without a name, {why}; please report this")
