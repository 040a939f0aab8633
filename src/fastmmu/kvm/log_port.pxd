# The dirty log of a slot in the hands of a VMM in Python.

from fastmmu.kvm.vm_port cimport VmPort
from fastmmu.mmu.memslots cimport Memslot


cdef class DirtyLog:
    cdef VmPort vm
    cdef readonly int number
    cdef Memslot *slot(self) except NULL


cdef DirtyLog log_of(VmPort vm, int number)
