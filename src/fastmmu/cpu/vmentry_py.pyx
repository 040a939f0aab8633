"""VM entry, for Python: `vm_entry`."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport flag, many, within, word
from fastmmu.arch.types cimport Mem
from fastmmu.arch.vmx cimport (
    CAP_WALK_5, ERROR_CONTROL_FIELDS, EXIT_ENTRY_FAILURE_GUEST_STATE, EXIT_TPR_BELOW_THRESHOLD, Vmcs,
)
from fastmmu.cpu.apic cimport APIC_TPR
from fastmmu.cpu.vapic cimport Vapic, vapic_controls, vapic_entered
from fastmmu.cpu.vmentry cimport ENTRY_FAILURE, MACHINE, EntryCaps, GuestFields, invalid_controls, invalid_state
from fastmmu.paging.memory cimport PhysicalMemory

from fastmmu.errors import StateError


class Entry(NamedTuple):
    """What VM entry ended in.

    error: VM-instruction error 7, else 0. failed: the checks that failed, as ``"C3"``. reason, qualification: of the VM
    exit that came in place of the first instruction, else None and 0. vppr, pending: with virtual-interrupt delivery.
    """

    error: int
    failed: tuple[str, ...]
    reason: int | None
    qualification: int
    vppr: int
    pending: bool


def vm_entry(*, vtpr=0, maxphyaddr=52, walk5=True, PhysicalMemory memory=None, guest_cr0=0x80000021, guest_cr3=0,
             guest_cr4=0x2020, guest_efer=0, guest_pat=0x0007040600070406, guest_rflags=2, guest_pdpte=(0, 0, 0, 0),
             **fields):
    """VM entry with valid host state: the checks of SDM volume 3, "Checks on VMX controls", "on the guest state".

    :param fields: control fields of the VMCS by name (``pin_based``, ``primary``, ``secondary``, ``eptp``, …; 0 where
        not given). :param vtpr: byte at 080H of the virtual-APIC page. :param memory: holds the PDPTEs of a guest in
        PAE mode without EPT. :param guest_cr0, …: guest state. :returns: :class:`Entry`.
    :raises StateError: a field that the VMCS here does not have, or a value wider than its field.
    """
    cdef Vmcs v
    cdef GuestFields g
    cdef EntryCaps caps = MACHINE
    cdef Vapic apic
    cdef uint8_t page[4096]
    cdef uint64_t qualification = 0
    cdef const Mem *mem = NULL if memory is None else &memory.mem
    cdef uint8_t tpr = within("vtpr", vtpr, 0, 0xFF)
    caps.maxphyaddr = within("maxphyaddr", maxphyaddr, 32, 52)
    v = _vmcs(fields)
    if not flag("walk5", walk5):
        caps.ept &= ~CAP_WALK_5
    g.cr0, g.cr3, g.cr4 = word("guest_cr0", guest_cr0), word("guest_cr3", guest_cr3), word("guest_cr4", guest_cr4)
    g.efer, g.pat = word("guest_efer", guest_efer), word("guest_pat", guest_pat)
    g.rflags = word("guest_rflags", guest_rflags)
    for i, entry in enumerate(_four("guest_pdpte", guest_pdpte)):
        g.pdpte[<int> i] = entry
    failed = invalid_controls(&v, tpr, &caps)
    if failed:
        names = tuple(f"C{i + 1}" for i in range(18) if failed >> i & 1)
        return Entry(ERROR_CONTROL_FIELDS, names, None, 0, 0, False)
    state = invalid_state(&v, &g, mem, &caps, &qualification)
    if state:
        return Entry(0, (f"G{state}",), EXIT_ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE, qualification, 0, False)
    memset(&apic, 0, sizeof(Vapic))
    memset(page, 0, sizeof(page))
    page[<int> APIC_TPR] = tpr
    apic.page = page
    vapic_controls(&apic, &v)
    if vapic_entered(&apic):
        return Entry(0, (), EXIT_TPR_BELOW_THRESHOLD, 0, 0, False)
    return Entry(0, (), None, 0, apic.vppr, bool(apic.pending))


cdef list _four(str name, object values):
    found = [word(name, each) for each in many(name, values)]
    if len(found) != 4:
        raise StateError(f"{name} has {len(found)} words, not 4")
    return found


cdef Vmcs _vmcs(fields):
    cdef Vmcs v
    memset(&v, 0, sizeof(Vmcs))
    named = {**v, "eoi_exit_bitmap": [0, 0, 0, 0], "guest_pdpte": [0, 0, 0, 0], "cr3_target": [0, 0, 0, 0]}
    for name, value in fields.items():
        if name not in named:
            raise StateError(f"the VMCS here has no control field {name!r}; it has {', '.join(sorted(named))}")
        named[name] = _four(name, value) if isinstance(named[name], list) else word(name, value)
    try:
        v = named
    except OverflowError as error:
        raise StateError(f"a value is wider than its field: {error}") from error
    return v
