"""What a VMM in Python finds of the MMU's tables: slots, and a walk down to an entry. `port` has the MMU itself."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport flag, within, word
from fastmmu.arch.bits cimport FRAME, PS
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.direct cimport get_child_sp, page_for_prefetch
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, mark_dirty, slot_away, slot_hpa, slot_huge
from fastmmu.mmu.mmu cimport NO_SP, Mmu, Sp, child_at, spte_at
from fastmmu.mmu.pages cimport mmu_put
from fastmmu.mmu.rmap cimport spte_set
from fastmmu.mmu.spte cimport (
    SpteFormat, spte_is_mmio, spte_leaf, spte_mmio_current, spte_mmio_gfn, spte_present, spte_tracked,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_down

from fastmmu.errors import PolicyError, WrongTypeError

cdef object _OWNER = object()   # none but the makers of these objects have it


cdef uint64_t _nobody = 0


cdef object word_of_tables():
    return _OWNER


cdef int refuse_outside() except -1:
    raise PolicyError("the guest does not stand still for its VMM: this is for the methods of a fastmmu.Kvm, while "
                      "they handle a VM exit")


cdef gfn_t page_number(object gfn) except? 0xBAD:
    return within("gfn", gfn, 0, 0xFFFFFFFFFFFFF, PolicyError)


cdef class Tables:
    """What all of it hangs on: the MMU of a machine.

    Threads: of the thread that runs the machine, while the VMM handles a VM exit or a call of its user space; elsewhere
    every call is refused (PolicyError).
    """

    def __cinit__(self):
        self.active = &_nobody                  # of one that nobody made every call is refused

    cdef int refuse(self) except -1:
        return refuse_outside()

    cdef Slot slot_of(self, const Memslot *slot):
        # the Slot of a struct of this MMU's; None of NULL
        cdef Slot found
        if slot == NULL:
            return None
        while len(self.slots) <= slot.number:
            found = Slot.__new__(Slot, _OWNER)
            found.port = self
            found.slot = &self.mmu.slots.slot[<int> len(self.slots)]
            self.slots.append(found)
        return self.slots[slot.number]

    cdef TableWalk walk_of(self, const TableIter *it):
        cdef TableWalk walk
        if not it.valid:
            return None
        walk = TableWalk.__new__(TableWalk, _OWNER)
        walk.port = self
        walk.it = it[0]
        walk.born = self.mmu.sp[it.owner].born
        return walk


cdef class Slot:
    """A memory slot: guest-physical memory, and the host's behind it (kvm_policy.md §0).

    Threads: as of :class:`fastmmu.mmu.port.Mmu`.
    """

    def __cinit__(self, made=None):
        if made is not _OWNER:
            raise WrongTypeError("a Slot is what Mmu.slot() finds; it is not made by hand")

    cdef gfn_t held(self, gfn) except? 0xBAD:
        # a page of it
        cdef gfn_t page = page_number(gfn)
        self.port.inside()
        if page - self.slot.base_gfn >= self.slot.npages:
            raise PolicyError(f"gfn={int(page):#x} is no page of this slot: {int(self.slot.npages)} from "
                              f"{int(self.slot.base_gfn):#x} on")
        return page

    @property
    def number(self):
        """Its number, as ``machine.vmm`` has it; it stays."""
        self.port.inside()
        return self.slot.number

    @property
    def base_gfn(self):
        """Its first page."""
        self.port.inside()
        return self.slot.base_gfn

    @property
    def npages(self):
        """Pages of 4 KB; 0: it is deleted."""
        self.port.inside()
        return self.slot.npages

    @property
    def readonly(self):
        """The guest cannot write to it: user space gets its stores."""
        self.port.inside()
        return bool(self.slot.readonly)

    @property
    def private(self):
        """Made by the VMM itself, such as the APIC-access page."""
        self.port.inside()
        return bool(self.slot.private)

    @property
    def emulated(self):
        """Private, and never mapped: the APIC-access page while APICv is off (kvm_policy.md §14)."""
        self.port.inside()
        return bool(self.slot.emulated)

    @property
    def device(self):
        """Its pages are a device's, given to the guest."""
        self.port.inside()
        return bool(self.slot.device)

    @property
    def logged(self):
        """The guest's writes to it are logged."""
        self.port.inside()
        return self.slot.dirty != NULL

    def hpa(self, gfn):
        """Host-physical address of a page of it. :raises PolicyError: it holds no such page."""
        cdef gfn_t page = self.held(gfn)
        return slot_hpa(self.slot, page)

    def huge(self, gfn):
        """The host backs the whole 2 MB around the page with one page of its own, and all of it is in the slot
        (kvm_policy.md §4.3). :raises PolicyError: as :meth:`hpa`."""
        cdef gfn_t page = self.held(gfn)
        return bool(slot_huge(self.slot, page))

    def at_hand(self, gfn):
        """The page is there and may be written: mapping it takes nothing of the host (gfn_to_page_many_atomic).
        :raises PolicyError: as :meth:`hpa`."""
        cdef gfn_t page = self.held(gfn)
        return bool(page_for_prefetch(self.slot, page))

    def away(self, gfn):
        """The host is taking the page away: nothing may be mapped before it has done so (kvm_policy.md §6).
        :raises PolicyError: as :meth:`hpa`."""
        cdef gfn_t page = self.held(gfn)
        return bool(slot_away(self.slot, page))

    def mark_dirty(self, gfn):
        """The page counts as written: it is logged, in the ring of the vCPU that runs or in the bitmap; nothing where
        the slot is not logged (mark_page_dirty). :raises PolicyError: as :meth:`hpa`."""
        cdef gfn_t page = self.held(gfn)
        mark_dirty(self.slot, page)


@cython.freelist(8)
cdef class TableWalk:
    """A walk of the VMM's tables, at one entry (Linux' struct tdp_iter, kvm_shadow_walk_iterator).

    It is good as long as the table page is there: afterwards its calls raise PolicyError, and the caller walks anew.

    Threads: as of :class:`fastmmu.mmu.port.Mmu`.
    """

    def __cinit__(self, made=None):
        if made is not _OWNER:
            raise WrongTypeError("a TableWalk is what Mmu.walk() gives; it is not made by hand")

    cdef Sp *sp(self) except NULL:
        # the table page
        cdef Sp *sp
        self.port.inside()
        sp = &self.port.mmu.sp[self.it.owner]
        if not sp.used or sp.born != self.born:
            raise PolicyError("the table page of this walk is gone by now; walk anew")
        return sp

    @property
    def level(self):
        """Of the entry: 1 leads to pages of 4 KB."""
        return self.it.level

    @property
    def index(self):
        """Of the entry in its table page, 0 to 511."""
        return self.it.index

    @property
    def linked(self):
        """The last step by :meth:`child` had to link the table page."""
        return bool(self.it.linked)

    @property
    def entry(self):
        """The entry as it is now, an int of 64 bits."""
        self.sp()
        return spte_at(self.port.mmu, self.it.owner, self.it.index)

    @property
    def present(self):
        """It leads somewhere, as the VMM sees it: an MMIO SPTE does not."""
        self.sp()
        return bool(spte_present(spte_at(self.port.mmu, self.it.owner, self.it.index)))

    @property
    def leaf(self):
        """It is present and maps a page."""
        cdef uint64_t entry
        self.sp()
        entry = spte_at(self.port.mmu, self.it.owner, self.it.index)
        return bool(spte_present(entry) and spte_leaf(entry, self.it.level))

    @property
    def mmio_gfn(self):
        """The page that it marks as MMIO, an int; None: no MMIO SPTE, or of an older layout of slots."""
        cdef uint64_t entry
        self.sp()
        entry = spte_at(self.port.mmu, self.it.owner, self.it.index)
        if not spte_is_mmio(self.port.mmu.format, entry):
            return None
        if not spte_mmio_current(entry, self.port.mmu.slots.generation):
            return None
        return spte_mmio_gfn(entry)

    @property
    def direct(self):
        """Its table page maps memory in its order, no guest's table (kvm_policy.md §1)."""
        return bool(self.sp().direct)

    @property
    def access(self):
        """What all that leads to its table page allows: X = 1, W = 2, U = 4."""
        return self.sp().access

    @property
    def gfn(self):
        """Of a direct table page: the first page that the entry maps; else the guest's table that it shadows."""
        cdef Sp *sp = self.sp()
        return sp.gfn + (self.it.index << 9 * (sp.level - 1)) if sp.direct else sp.gfn

    def beside(self, index):
        """The same walk at another entry of the table page. :param index: 0 to 511."""
        cdef TableWalk walk
        cdef uint64_t at = within("index", index, 0, 511, PolicyError)
        self.sp()
        walk = self.port.walk_of(&self.it)
        walk.it.index = at
        walk.it.la = self.it.la + ((at - self.it.index) << (12 + 9 * (self.it.level - 1)))
        walk.it.linked = False
        return walk

    def down(self):
        """One level down; False where the entry points to no table: then the walk stays."""
        self.sp()
        self.it.entry = spte_at(self.port.mmu, self.it.owner, self.it.index)
        if not iter_down(self.port.mmu, &self.it):
            return False
        self.born = self.port.mmu.sp[self.it.owner].born
        return True

    def child(self, gfn, direct, access):
        """Down to the table page of (gfn, role), made where there is none and linked where another stands; then
        :attr:`linked` is True (kvm_mmu_get_child_sp).

        :param gfn: the guest's table; of a direct one the first page that it maps, aligned to what it maps.
        :param access: what all entries down to it allow, X = 1, W = 2, U = 4.
        :returns: False where no table page is left. :raises PolicyError: the entry is of level 1; `gfn` is not aligned,
            or no slot holds it.
        """
        cdef Mmu *mmu = self.port.mmu
        cdef gfn_t page = page_number(gfn)
        cdef int allowed = within("access", access, 0, 127, PolicyError)
        cdef bint straight = flag("direct", direct)
        self.sp()
        if self.it.level == 1:
            raise PolicyError("an entry of level 1 leads to a page, not to a table")
        if straight and page & ((<uint64_t> 1 << 9 * (self.it.level - 1)) - 1):
            raise PolicyError(f"gfn={int(page):#x} is not aligned to what a table page of level {self.it.level - 1} "
                              "maps")
        if not straight and gfn_to_memslot(&mmu.slots, page) == NULL:
            raise PolicyError(f"gfn={int(page):#x}: no slot holds it, so that no table of the guest's lies there")
        self.it.entry = spte_at(mmu, self.it.owner, self.it.index)
        if not get_child_sp(mmu, &self.it, page, straight, allowed):
            return False
        self.born = mmu.sp[self.it.owner].born
        return True

    @property
    def unsync(self):
        """The guest may have changed the table that its table page shadows since its entries were made."""
        return self.sp().unsync != 0

    def in_use(self):
        """Its table page is in use: writes to the guest's table before this are no flood (kvm_policy.md §2.2)."""
        self.sp().writes = 0

    @property
    def split(self):
        """The table page to which it leads is there only because an executable large page is not allowed (kvm_policy.md
        §8)."""
        cdef uint32_t child
        self.sp()
        child = child_at(self.port.mmu, self.it.owner, self.it.index)
        return child != NO_SP and self.port.mmu.sp[child].split != 0

    def mark_split(self):
        """Its table page is there only because an executable large page is not allowed (account_nx_huge_page)."""
        cdef Sp *sp = self.sp()
        if not sp.split:
            self.port.mmu.nx_splits += 1
            self.port.mmu.counters.nx_lpage_splits += 1
            sp.split = self.port.mmu.nx_splits

    cdef int check(self, const Sp *sp, uint64_t new) except -1:
        # what the kernels themselves keep (check_spte of `rmap`)
        cdef Mmu *mmu = self.port.mmu
        cdef const SpteFormat *f = mmu.format
        cdef uint64_t size = <uint64_t> 1 << (12 + 9 * (sp.level - 1))
        cdef uint64_t frame = new & FRAME
        cdef Memslot *slot
        cdef gfn_t gfn
        cdef int i
        cdef str why = None
        if not spte_present(new):
            if new and not (sp.level == 1 and spte_is_mmio(f, new)):
                why = "what is not present is 0, or at level 1 an MMIO SPTE"
        elif sp.level > 2 or not spte_leaf(new, sp.level):
            why = "no leaf of level 1 or 2; child() links tables"
        elif (new & f.write and not new & f.may_write) or (new & f.may_write and not new & f.host_write):
            why = "W needs may_write, and that needs host_write"
        elif frame & (size - 1) or (sp.level == 1 and new & PS):
            why = "the page is not aligned to its size"
        elif not mmu.ad and new & (f.accessed | f.dirty):
            why = "its format has no A and D"
        elif mmu.ad and spte_tracked(f, new):
            why = "it allows nothing"
        elif sp.direct:
            gfn = sp.gfn + (self.it.index << 9 * (sp.level - 1))
            slot = gfn_to_memslot(&mmu.slots, gfn)
            if slot == NULL or slot_hpa(slot, gfn) != frame or gfn + (size >> 12) > slot.base_gfn + slot.npages:
                why = f"it does not lead to the memory behind gfn {int(gfn):#x}"
        else:
            for i in range(mmu.slots.n):
                slot = &mmu.slots.slot[i]
                if frame >= slot.hpa and frame + size <= slot.hpa + (slot.npages << 12):
                    break
            else:
                why = "it leads to the memory of no slot"
        if why is not None:
            raise PolicyError(f"entry={int(new):#x} at level {sp.level}: {why}")
        return 0

    def set(self, entry):
        """The entry is this one from now on; the reverse maps follow, and a flush is owed where rights went
        (mmu_spte_set, drop_spte).

        :param entry: 0; a leaf of level 1 or 2, as by :meth:`fastmmu.mmu.port.Mmu.make_spte`; an MMIO SPTE.
        :raises PolicyError: an entry that the tables cannot hold, such as one that leads out of the slots.
        """
        cdef uint64_t new = word("entry", entry)
        cdef Sp *sp = self.sp()
        self.check(sp, new)
        if self.port.mmu.policy.tdp:
            mmu_put(self.port.mmu, self.it.owner, self.it.index, new)
        else:
            spte_set(self.port.mmu, self.it.owner, self.it.index, new)
