"""The VMM's user space: memory slots and their dirty logs, as the ioctls of KVM have them (kvm_policy.md §4)."""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._dirty cimport dirty_clear, dirty_get, dirty_ring, dirty_start, dirty_stop
from fastmmu._reclaim cimport host_give, host_take, host_young
from fastmmu._kvm cimport FORGO_INVLPG, FORGO_REGISTERS, FORGO_TABLES, kvm_drain, kvm_owed_flush, kvm_reload
from fastmmu._memtype cimport Mtrrs
from fastmmu._mmu cimport MmuCounters
from fastmmu._slots cimport HOST_PRESENT, Slot, slots_delete
from fastmmu._vmx cimport SECONDARY_PML
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError

_FORGO = {"tables": FORGO_TABLES, "registers": FORGO_REGISTERS, "invlpg": FORGO_INVLPG}


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

    @property
    def forgone(self):
        """Flushes that this VMM leaves out, to see that they are missed: a set of "tables" (after changes of the shadow
        tables or the EPT), "registers" (guest CR0, CR3, CR4 under shadow paging), "invlpg"."""
        return {name for name, bit in _FORGO.items() if self.kvm.forgo & <uint32_t> bit}

    @forgone.setter
    def forgone(self, names):
        unknown = set(names) - set(_FORGO)
        if unknown:
            raise ConfigError(f"{sorted(unknown)[0]!r} is no flush; choose from {', '.join(_FORGO)}")
        self.kvm.forgo = sum(_FORGO[name] for name in set(names))

    def start_dirty_log(self, number, *, bint manual=False, bint initially_set=False):
        """Log the guest's writes to a slot from now on; nothing happens where it is logged already.

        :param manual: reading the log leaves it; :meth:`clear_dirty_log` does the rest
            (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
        :param initially_set: and it starts with every page set, so that nothing is protected before it is cleared.
        :raises StateError: no such slot. :raises OutOfMemoryError: no memory for the bitmap.
        """
        cdef int n = self.slot(number)
        if dirty_start(&self.kvm.mmu, n, manual, initially_set):
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

    def clear_dirty_log(self, number, first, count):
        """Begin the log anew for `count` pages from page `first` of a slot whose log is ``manual``.

        :raises StateError: no such log, or `first` or `count` is no multiple of 64 (the end of the slot aside).
        """
        cdef int n = self.slot(number)
        cdef Slot *slot = &self.kvm.mmu.slots.slot[n]
        cdef uint64_t start = first, pages = count
        if slot.dirty == NULL or not slot.manual:
            raise StateError(f"slot {number} has no log to clear; start it with manual=True")
        if (start > slot.npages or pages > slot.npages - start or start & 63
                or (pages & 63 and start + pages < slot.npages)):
            raise StateError(f"pages {first} + {count}: multiples of 64 within the slot's {slot.npages} pages")
        kvm_drain(self.kvm, self.v)
        dirty_clear(&self.kvm.mmu, n, start, pages)
        kvm_owed_flush(self.kvm, self.v)

    def use_dirty_ring(self, size):
        """Log to a ring of `size` entries in place of bitmaps; :meth:`dirty_log` gives what was read from it.

        Before the ring is full an exit to user space reads it (counter ``ring_full``).

        :raises StateError: `size` is no power of two from 1024 to 65536, or a slot is logged already.
        """
        cdef int i
        if size not in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise StateError(f"a ring of {size} entries: use a power of two from 1024 to 65536")
        for i in range(self.kvm.mmu.slots.n):
            if self.kvm.mmu.slots.slot[i].dirty != NULL or self.kvm.mmu.slots.ring.size:
                raise StateError("the ring is chosen once, before any slot is logged")
        if dirty_ring(&self.kvm.mmu, size):
            raise OutOfMemoryError("no memory for the ring")

    def young(self, number, page, *, bint clear=False):
        """Was a page of a slot used since its A flags were last cleared? The host asks so before it takes a page.

        :param clear: clear them (without A flags in the tables, its entries go instead).
        """
        cdef int n = self.slot(number)
        cdef Slot *slot = &self.kvm.mmu.slots.slot[n]
        cdef bint found
        if not 0 <= page < slot.npages:
            raise StateError(f"slot {number} has {slot.npages} pages, no page {page}")
        found = host_young(&self.kvm.mmu, slot, slot.base_gfn + <uint64_t> page, clear)
        kvm_owed_flush(self.kvm, self.v)
        return found

    def swap_out(self, number, page):
        """The host takes a page of an untouched slot to disk; False where it is not there, or is a shadowed table."""
        cdef int n = self.slot(number)
        cdef Slot *slot = &self.kvm.mmu.slots.slot[n]
        cdef bint done
        if not 0 <= page < slot.npages:
            raise StateError(f"slot {number} has {slot.npages} pages, no page {page}")
        done = host_take(&self.kvm.mmu, slot, slot.base_gfn + <uint64_t> page)
        kvm_owed_flush(self.kvm, self.v)
        return done

    def guest_caching(self, Mtrrs mtrrs=None, *, uncached=None):
        """The guest changes its MTRRs, or CR0.CD: with non-coherent DMA every table of the VMM goes (kvm_policy.md §7).

        :param uncached: CR0.CD; None: as it is.
        """
        if mtrrs is not None:
            self.kvm.mmu.mtrrs = mtrrs.state
        if uncached is not None:
            self.kvm.mmu.uncached = bool(uncached)
        if self.kvm.mmu.noncoherent and kvm_reload(self.kvm, self.v):
            raise OutOfMemoryError("no table page for a new root")

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
                if slot.host[i] != HOST_PRESENT:
                    host_give(&self.kvm.mmu, slot, slot.base_gfn + i)
        kvm_owed_flush(self.kvm, self.v)

    def counters(self):
        """What the MMU did: dict of int. pages: leaf entries there are, by size 4K, 2M, 1G."""
        cdef MmuCounters c = self.kvm.mmu.counters
        return dict(c)
