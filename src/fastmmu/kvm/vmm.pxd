# What a VMM's user space does, between two events of a guest that runs.

from fastmmu.kvm.kvm cimport Kvm
from fastmmu.kvm.port cimport VirtualMachine
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.threads.turns cimport Turn, Turns

cdef class Vmm:
    cdef object board           # of the machine: keeps alive what the pointer below points into; memory, counters()
    cdef Kvm *kvm
    cdef Turns turns            # of the machine
    cdef VirtualMachine vm      # of a machine whose VMM is a class in Python; else None
    cdef Turn take(self)
    cdef int paid(self) except -1
    cdef int reload(self) except -1
    cdef int slot(self, number) except -1
    cdef int layout_changed(self) except -1
    cdef Memslot *pages(self, number, first, count) except NULL

cdef Vmm vmm_of(object board, Turns turns, Kvm *kvm, VirtualMachine vm)
cdef int has_ended() except -1
