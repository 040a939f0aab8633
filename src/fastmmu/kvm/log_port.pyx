"""The dirty log of a slot in the hands of a VMM in Python (kvm_policy.md §4.1)."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport shown
from fastmmu.kvm.vm_port cimport made_of, word_of_board
from fastmmu.mmu.ageing cimport CLEAR_FLUSH_YOUNG, host_young
from fastmmu.mmu.dirty_log cimport dirty_protect, dirty_protect_page
from fastmmu.mmu.mmu cimport mmu_owe_flush

import numpy as np

from fastmmu.errors import StateError


cdef DirtyLog log_of(VmPort vm, int number):
    """Of a slot that is logged."""
    cdef DirtyLog log = DirtyLog.__new__(DirtyLog, word_of_board())
    log.vm, log.number = vm, number
    return log


cdef class DirtyLog:
    """The dirty log of a slot in the hands of its VMM, a :class:`fastmmu.Kvm`. number: of the slot.

    :raises PolicyError: every call while the VMM is asked for nothing. :raises StateError: the slot is not logged any
        more.

    Threads: as of :class:`fastmmu.kvm.port.VirtualMachine`.
    """

    def __cinit__(self, made=None):
        made_of(made, "a DirtyLog is what the methods of a fastmmu.Kvm get")

    cdef Memslot *slot(self) except NULL:
        self.vm.inside()
        if self.number >= self.vm.kvm.mmu.slots.n or self.vm.kvm.mmu.slots.slot[self.number].dirty == NULL:
            raise StateError(f"slot {self.number} is not logged any more")
        return &self.vm.kvm.mmu.slots.slot[self.number]

    @property
    def pages(self):
        """Pages of 4096 bytes in the slot."""
        return self.slot().npages

    def protect_slot(self):
        """The next write to each page of the slot is seen: entries lose the right to write, or, with PML, D; large ones
        lose the right, and are split before where KVM does so (``Config.eager_page_split``)."""
        self.slot()
        dirty_protect(&self.vm.kvm.mmu, self.number)

    def protect(self, pages):
        """The next write to these pages is seen.

        :param pages: array of bool, one a page of the slot. :raises StateError: another array.
        """
        cdef Memslot *slot = self.slot()
        cdef const uint8_t[::1] chosen
        cdef uint64_t page
        cdef bint any = False
        if not isinstance(pages, np.ndarray) or pages.dtype != np.bool_ or pages.shape != (slot.npages,):
            raise StateError(f"pages={shown(pages)}: give an array of {int(slot.npages)} bools, one a page of the slot")
        chosen = np.ascontiguousarray(pages).view(np.uint8)
        for page in range(slot.npages):
            if chosen[page]:
                any = True
                dirty_protect_page(&self.vm.kvm.mmu, slot, slot.base_gfn + page)
        if any:                                 # cached translations may allow more than any entry still does (§6)
            mmu_owe_flush(&self.vm.kvm.mmu)

    def clear_young(self):
        """Which pages were used since this was asked last, by their A flags: array of bool, one a page
        (kvm_mmu_notifier_clear_flush_young); cached translations of those go, so that the next use is seen."""
        cdef Memslot *slot = self.slot()
        cdef uint64_t page
        used = np.zeros(slot.npages, np.bool_)
        cdef uint8_t[::1] out = used.view(np.uint8)
        for page in range(slot.npages):
            out[page] = host_young(&self.vm.kvm.mmu, slot, slot.base_gfn + page, CLEAR_FLUSH_YOUNG)
        return used
