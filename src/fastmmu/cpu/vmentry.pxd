# What VM entry checks (vmx.md §3.1, §3.2).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem, Paging
from fastmmu.arch.vmx cimport Vmcs

cdef struct EntryCaps:          # what the processor allows (capability MSRs); `must`: bits that have to be 1
    uint32_t pin_based, primary, secondary, vm_exit, vm_entry
    uint32_t pin_based_must, primary_must, secondary_must, vm_exit_must, vm_entry_must
    uint64_t tertiary, tertiary_must
    uint32_t vm_functions
    uint64_t cr0_must, cr0_may, cr4_must, cr4_may
    uint8_t maxphyaddr
    uint64_t ept                # IA32_VMX_EPT_VPID_CAP

cdef struct GuestFields:
    uint64_t cr0, cr3, cr4, efer, pat, rflags
    uint64_t pdpte[4]

cdef EntryCaps MACHINE          # the processor that the machine simulates
cdef uint32_t ENTRY_FAILURE     # in an exit reason: the exit came in place of the entry

cdef uint32_t invalid_controls(const Vmcs *vmcs, uint8_t vtpr, const EntryCaps *caps) noexcept nogil
cdef int invalid_state(const Vmcs *vmcs, const GuestFields *g, const Mem *mem, const EntryCaps *caps,
                       uint64_t *qualification) noexcept nogil
cdef int invalid_registers(const Vmcs *vmcs, const Paging *hw, const Mem *mem, uint64_t *qualification) noexcept nogil
