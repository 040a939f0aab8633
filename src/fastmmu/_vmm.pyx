"""The VMM's user space: memory slots and their dirty logs, as the ioctls of KVM have them (kvm_policy.md §4)."""

import numpy as np

from libc.stdint cimport uint64_t

from fastmmu._dirty cimport dirty_get, dirty_start, dirty_stop
from fastmmu._kvm cimport kvm_drain, kvm_owed_flush, kvm_reload
from fastmmu._mmu cimport MmuCounters
from fastmmu._slots cimport HOST_PRESENT, Slot, slots_delete
from fastmmu._vmx cimport SECONDARY_PML
from fastmmu.errors import OutOfMemoryError, StateError


cdef class Vmm:
    """Operations on the memory slots of a :class:`fastmmu.Machine`, from ``machine.vmm``.

    Slots are numbered from 0, the machine's memory; then those given to the machine, in their order.
    """

    cdef int slot(self, number) except -1:
        cdef int n = number
        if not 0 <= n < self.kvm.mmu.slots.n or not self.kvm.mmu.slots.slot[n].npages:
            raise StateError(f"there is no slot {number}; slots are numbered from 0, those deleted are gone")
        return n

    cdef arm(self):
        # the processor logs while any slot is logged; what it cached before would write unlogged
        cdef int i
        cdef bint logged = False
        for i in range(self.kvm.mmu.slots.n):
            logged = logged or self.kvm.mmu.slots.slot[i].dirty != NULL
        if not self.kvm.mmu.policy.pml:
            return
        self.v.vmcs.pml_index = 511
        self.v.ept.pml_index = &self.v.vmcs.pml_index if logged else NULL
        self.v.ept.pml_base = self.v.vmcs.pml_address
        if logged:
            self.v.vmcs.secondary |= SECONDARY_PML
        else:
            self.v.vmcs.secondary &= ~SECONDARY_PML

    def start_dirty_log(self, number):
        """Log the guest's writes to a slot from now on; nothing happens where it is logged already.

        :raises StateError: no such slot. :raises OutOfMemoryError: no memory for the bitmap.
        """
        cdef int n = self.slot(number)
        if dirty_start(&self.kvm.mmu, n):
            raise OutOfMemoryError(f"no memory for the dirty log of slot {number}")
        self.arm()
        kvm_owed_flush(self.kvm, self.v)

    def stop_dirty_log(self, number):
        """End the log of a slot. Writes to pages that it protected still fault, once each."""
        cdef int n = self.slot(number)
        kvm_drain(self.kvm, self.v)
        dirty_stop(&self.kvm.mmu, n)
        self.arm()
        kvm_owed_flush(self.kvm, self.v)

    def dirty_log(self, number):
        """Pages of a slot written since its log was started or last read, which this call begins anew.

        :returns: array of bool, one a page of 4096 bytes. :raises StateError: no such slot, or it is not logged.
        """
        cdef int n = self.slot(number)
        cdef Slot *slot = &self.kvm.mmu.slots.slot[n]
        if slot.dirty == NULL:
            raise StateError(f"slot {number} is not logged; call start_dirty_log first")
        words = np.zeros((slot.npages + 63) >> 6, np.uint64)
        cdef uint64_t[::1] out = words
        kvm_drain(self.kvm, self.v)
        dirty_get(&self.kvm.mmu, n, &out[0])
        kvm_owed_flush(self.kvm, self.v)
        return np.unpackbits(words.view(np.uint8), count=slot.npages, bitorder="little").view(np.bool_)

    def delete_slot(self, number):
        """Take a slot away. Every table of the VMM goes with it, as in KVM.

        :raises StateError: no such slot, or slot 0, in which the guest's tables lie.
        """
        cdef int n = self.slot(number)
        if n == 0:
            raise StateError("slot 0 is the machine's own memory and cannot be deleted")
        # the tables go first: their entries are found through the slots
        if kvm_reload(self.kvm, self.v):
            raise OutOfMemoryError("no table page for a new root")
        slots_delete(&self.kvm.mmu.slots, n)
        self.arm()

    def touch(self, number, first, count):
        """The host writes pages of an untouched slot, as a loader does: `count` pages from page `first` of the slot."""
        cdef int n = self.slot(number)
        cdef Slot *slot = &self.kvm.mmu.slots.slot[n]
        cdef uint64_t start = first, pages = count, i
        if start > slot.npages or pages > slot.npages - start:
            raise StateError(f"slot {number} has {slot.npages} pages, not {first} + {count}")
        if slot.host != NULL:
            for i in range(start, start + pages):
                slot.host[i] = HOST_PRESENT

    def counters(self):
        """What the MMU did: dict of int. pages: leaf entries there are, by size 4K, 2M, 1G."""
        cdef MmuCounters c = self.kvm.mmu.counters
        return dict(c)
