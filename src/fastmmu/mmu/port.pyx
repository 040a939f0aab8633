"""The MMU in the hands of a VMM in Python: `Mmu`.

What is done is the kernels' own (`direct`, `pages`, `rmap`); what is decided, and when, is the caller's. No call leaves
tables that the kernels would not make: an entry leads to the memory of a slot or to a table page of the MMU.
"""

from libc.stdint cimport uint64_t

from collections import namedtuple

from fastmmu._arguments cimport flag, shown, within, word
from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.memtype cimport mtrr_type
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.direct cimport Fault, faultin_pfn
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, slot_hpa
from fastmmu.mmu.mmu cimport Mmu as MmuState
from fastmmu.mmu.mmu cimport MmuCounters, mmu_frame, mmu_top
from fastmmu.mmu.pages cimport mmu_make_room, mmu_may_write, mmu_tracked
from fastmmu.mmu.spte cimport (
    SpteFormat, make_spte, spte_mmio, spte_present, spte_restore, spte_tracked, spte_update_flushes,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_find, iter_start
from fastmmu.mmu.tables_port cimport Tables, page_number, word_of_tables

from fastmmu.errors import Code, PolicyError


class RetPf(Code):
    """What became of a fault (RET_PF_... of Linux' arch/x86/kvm/mmu/mmu_internal.h)."""

    BUS = -2  # a table of the guest's lies in a further slot, which the walk does not read
    NO_TABLES = -1  # the pool of table pages is used up
    CONTINUE = 0  # nothing yet: the next step decides
    RETRY = 1  # the host changed its pages meanwhile: run the access again
    EMULATE = 2  # no memory behind it, or a write to a read-only slot: user space's
    WRITE_PROTECTED = 3  # a write to a shadowed table: emulate it
    INVALID = 4  # not one that the fast path fixes
    FIXED = 5  # the entry now allows the access
    SPURIOUS = 6  # it did already
    INJECT = 7  # the guest's own #PF


Format = namedtuple("Format", "read, write, execute, user, xd, accessed, dirty, host_write, may_write")
Format.__doc__ = """Bits of an entry of the VMM's tables (kvm_policy.md §3.3); 0: the format has none.

host_write: the host lets the page be written. may_write: read-only only because writes are logged, or it was aged."""

cdef dict _results = {int(result): result for result in RetPf}


cdef dict words_of_counters():
    cdef MmuCounters c
    cdef size_t i
    for i in range(sizeof(c) // 8):
        (<uint64_t *> &c)[i] = i
    return {name: at for name, at in (<dict> c).items() if not isinstance(at, list)}


cdef dict _counters = words_of_counters()


cdef int place_of(name) except -1:
    found = _counters.get(name) if isinstance(name, str) else None
    if found is None:
        raise PolicyError(f"the MMU has no counter {shown(name)}; choose from {', '.join(_counters)}")
    return found


cdef inline int level_of(object level) except -1:
    return within("level", level, 1, 2, PolicyError)


cdef Mmu mmu_of(object owner, MmuState *mmu, const uint64_t *active, object rules):
    """The MMU of a machine, for its VMM, which works in thread `active`."""
    cdef Mmu port = Mmu.__new__(Mmu, word_of_tables())
    cdef const SpteFormat *f = mmu.format
    port.owner, port.mmu, port.active = owner, mmu, active
    port.slots = []
    port.format = Format(f.read, f.write, f.execute, f.user, f.xd, f.accessed, f.dirty, f.host_write, f.may_write)
    port.rules = rules
    port.tdp, port.prefetch = mmu.policy.tdp, mmu.policy.prefetch
    port.unsync, port.flooding = mmu.policy.unsync, mmu.policy.flooding
    port.fast_faults, port.mmio_caching = mmu.policy.fast, mmu.policy.mmio_caching
    port.nx_huge, port.ad = mmu.policy.nx_huge, mmu.ad
    return port


cdef class Mmu(Tables):
    """The tables that a VMM owns, and its memory slots: ``vm.mmu`` of a :class:`fastmmu.Kvm`.

    format: :class:`Format` of the entries. rules: what its version of KVM does,
    a :class:`fastmmu.kvm_versions.KvmRules`. What it does by module parameters as well, True or False:
    tdp (EPT by the TDP MMU), prefetch, unsync, flooding, fast_faults, mmio_caching, nx_huge; ad: entries have A and D
    flags.

    Threads: of the thread that runs the machine, while the VMM handles a VM exit or a call of its user space; elsewhere
    every call is refused (PolicyError).
    """

    # ---- counters --------------------------------------------------------------------------------------------

    def count(self, name, n=1):
        """Count what the MMU did: a name of :meth:`fastmmu.kvm.vmm.Vmm.counters`, such as "fast" or "dirty_faults".

        :param n: how many, an int of 64 bits. :raises PolicyError: no such counter.
        """
        self.inside()
        (<uint64_t *> &self.mmu.counters)[place_of(name)] += within("n", n, 0, 0xFFFFFFFFFFFFFFFF, PolicyError)

    def counted(self, name):
        """The counter, an int. :raises PolicyError: no such counter."""
        self.inside()
        return (<uint64_t *> &self.mmu.counters)[place_of(name)]

    # ---- guest-physical memory -------------------------------------------------------------------------------

    def slot(self, gfn):
        """The :class:`Slot` that holds page `gfn` (an int, gpa >> 12); None: MMIO (gfn_to_memslot)."""
        self.inside()
        return self.slot_of(gfn_to_memslot(&self.mmu.slots, page_number(gfn)))

    def faultin_pfn(self, gfn, write):
        """The host's page behind `gfn`, given or read back from disk where it is not there (kvm_faultin_pfn;
        kvm_policy.md §6).

        :param write: the access is a store, for which the host gives a page of the guest's own.
        :returns: (:class:`RetPf`, :class:`Slot` or None, whether the host lets it be written); CONTINUE: it is there.
            EMULATE: no slot, or a store to a read-only one. RETRY: the host changed its pages meanwhile.
        """
        cdef Fault f
        cdef int result
        self.inside()
        f.gpa = page_number(gfn) << 12
        f.write = flag("write", write)
        f.slot = NULL
        f.host_writable = False
        result = faultin_pfn(self.mmu, &f)
        return _results[result], self.slot_of(f.slot), f.host_writable

    def mtrr_type(self, gfn):
        """Memory type of a page by the guest's MTRRs, 0 to 6 (SDM, "Memory Type Range Registers")."""
        self.inside()
        return mtrr_type(&self.mmu.mtrrs, page_number(gfn) << 12)

    @property
    def noncoherent(self):
        """A device writes memory past the caches: the guest's own memory types count (kvm_policy.md §7)."""
        self.inside()
        return bool(self.mmu.noncoherent)

    @property
    def cd(self):
        """The guest's CR0.CD."""
        self.inside()
        return bool(self.mmu.uncached)

    @property
    def cd_quirk(self):
        """The guest's CR0.CD changes nothing (KVM_X86_QUIRK_CD_NW_CLEARED)."""
        self.inside()
        return bool(self.mmu.ignore_cd)

    # ---- table pages -----------------------------------------------------------------------------------------

    def make_room(self):
        """Before a fault: where few table pages are left of those allowed, the oldest go (make_mmu_pages_available;
        kvm_policy.md §2.5)."""
        self.inside()
        mmu_make_room(self.mmu)

    def tracked(self, gfn):
        """Writes to the page are emulated, always: a guest's table that is shadowed lies there, above level 1 or
        without unsync (kvm_policy.md §2.2)."""
        cdef gfn_t page = page_number(gfn)
        self.inside()
        return bool(mmu_tracked(self.mmu, page))

    def may_write(self, gfn, can_unsync, prefetch):
        """An entry may map the page writable; page tables of the guest's that lie there, shadowed, become unsync for
        that (mmu_try_to_unsync_pages; kvm_policy.md §2.2).

        :param can_unsync: they may. :param prefetch: nobody writes yet: they must be unsync already.
        """
        cdef gfn_t page = page_number(gfn)
        self.inside()
        return bool(mmu_may_write(self.mmu, page, flag("can_unsync", can_unsync), flag("prefetch", prefetch)))

    def shadowed_near(self, gfn):
        """In the 2 MB of the host's memory around this page, which a slot holds, lies a guest's table that is shadowed:
        nothing larger than 4 KB may map them (disallow_lpage; kvm_policy.md §4.3)."""
        cdef gfn_t page = page_number(gfn)
        cdef Memslot *slot
        self.inside()
        slot = gfn_to_memslot(&self.mmu.slots, page)
        return slot != NULL and self.mmu.tables_in[mmu_frame(self.mmu, slot_hpa(slot, page)) >> 9] != 0

    def walk(self, address):
        """A walk of the tables for an address, a :class:`TableWalk` at its first entry; None: there is no root.

        :param address: linear, under EPT guest-physical, an int of 64 bits.
        """
        cdef TableIter it
        self.inside()
        iter_start(self.mmu, &it, mmu_top(self.mmu, word("address", address)), word("address", address))
        return self.walk_of(&it)

    def find(self, address):
        """The same at its last entry: a leaf, or one that is not present."""
        cdef TableIter it
        self.inside()
        iter_find(self.mmu, &it, word("address", address))
        return self.walk_of(&it)

    # ---- entries ---------------------------------------------------------------------------------------------

    def make_spte(self, hpa, level, access, accessed, dirty, host_writable, memory_type=0):
        """A leaf entry, an int (make_spte; kvm_policy.md §3.3).

        :param hpa: host-physical address of the page. :param level: 1: 4 KB, 2: 2 MB. :param access: X = 1, W = 2,
            U = 4, the protection key << 3. :param accessed, dirty: its flags. :param host_writable: the host lets the
            page be written. :param memory_type: bits 6:3 of an EPT entry.
        """
        self.inside()
        return make_spte(self.mmu.format, within("hpa", hpa, 0, 0xFFFFFFFFFFFFF, PolicyError) & FRAME, level_of(level),
                         within("access", access, 0, 127, PolicyError), flag("accessed", accessed),
                         flag("dirty", dirty), flag("host_writable", host_writable),
                         within("memory_type", memory_type, 0, 0x78, PolicyError))

    def mmio_spte(self, gfn):
        """An entry, an int, that marks the page as MMIO, in the layout of slots there is now (kvm_policy.md §4.4)."""
        self.inside()
        return spte_mmio(self.mmu.format, page_number(gfn), self.mmu.slots.generation)

    def restored(self, entry):
        """The entry with the rights that it lost when it was aged (spte_restore; kvm_policy.md §6); any other as it is.
        """
        cdef uint64_t old = word("entry", entry)
        self.inside()
        if not self.mmu.ad and spte_present(old) and spte_tracked(self.mmu.format, old):
            return spte_restore(self.mmu.format, old)
        return old

    def update_flushes(self, old, new):
        """Linux requests a flush where an entry of the same page changes so (mmu_spte_update)."""
        self.inside()
        return bool(spte_update_flushes(self.mmu.format, self.mmu.ad, word("old", old), word("new", new)))
