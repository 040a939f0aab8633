# The guest's local APIC as the caller's to use: its instructions and the interrupts that arrive.

from fastmmu.kvm.kvm cimport KvmVcpu


cdef class GuestApic:
    cdef object machine         # keeps alive what the pointer below points into
    cdef KvmVcpu **vcpu         # that the machine has loaded now
    cdef _done(self, int outcome)
