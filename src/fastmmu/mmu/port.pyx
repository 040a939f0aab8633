"""The MMU in the hands of a VMM in Python: `Mmu`.

What is done is the kernels' own (`direct`, `pages`, `rmap`); what is decided, and when, is the caller's. No call leaves
tables that the kernels would not make: an entry leads to the memory of a slot or to a table page of the MMU.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from collections import namedtuple

from fastmmu._arguments cimport flag, instance, many, shown, within, word
from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.memtype cimport mtrr_type
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.direct cimport Fault, faultin_pfn
from fastmmu.mmu.entries cimport entries_zap_all
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, slot_hpa, slots_add
from fastmmu.mmu.mmu cimport Mmu as MmuState
from fastmmu.mmu.mmu cimport MmuCounters, mmu_frame, mmu_top
from fastmmu.mmu.pages cimport mmu_free, mmu_init, mmu_make_room, mmu_may_write, mmu_tracked
from fastmmu.mmu.roots cimport mmu_set_root, mmu_vcpu_create
from fastmmu.mmu.spte cimport (
    FORMAT_EPT, SpteFormat, make_spte, spte_mmio, spte_present, spte_restore, spte_tracked, spte_update_flushes,
)
from fastmmu.mmu.table_iter cimport TableIter, iter_find, iter_start
from fastmmu.mmu.tables_port cimport page_number, refuse_outside, word_of_tables
from fastmmu.paging.memory cimport PhysicalMemory

from fastmmu.errors import Code, ConfigError, OutOfMemoryError, PolicyError, WrongTypeError
from fastmmu.kvm_versions import TODAY, kvm_rules


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


cdef uint64_t _nobody = 0


cdef uint64_t whole_pages(str name, value, uint64_t most) except? 0xBAD:
    cdef uint64_t found = within(name, value, 0, most, ConfigError)
    if found & 0xFFF:
        raise ConfigError(f"{name}={found:#x} is no multiple of 4096")
    return found


cdef inline int level_of(object level) except -1:
    return within("level", level, 1, 2, PolicyError)


cdef Mmu mmu_of(object owner, MmuState *mmu, const uint64_t *active, object rules):
    """The MMU of a machine, for its VMM, which works in thread `active`."""
    cdef Mmu port = Mmu.__new__(Mmu, word_of_tables(), pool=None)
    port.owner, port.mmu, port.active = owner, mmu, active
    port.rules = rules
    port.describe()
    return port


cdef class Mmu(Entries):
    """The tables that a VMM owns, and its memory slots: ``vm.mmu`` of a :class:`fastmmu.Kvm`, or an EPT of its own for
    a VMM on :class:`fastmmu.vmx.Cpu`, which writes :attr:`eptp` to its VMCS.

    format: :class:`Format` of the entries. rules: what its version of KVM does,
    a :class:`fastmmu.kvm_versions.KvmRules`. What it does by module parameters as well, True or False:
    tdp (EPT by the TDP MMU), prefetch, unsync, flooding, fast_faults, mmio_caching, nx_huge; ad: entries have A and D
    flags. memory: that in which an EPT of one's own stands, else None.

    :param memory: :class:`fastmmu.PhysicalMemory`, host-physical and writable.
    :param pool: host-physical addresses where table pages are made, a range such as range(0x10000, 0x40000), of whole
        pages: one for the root, three for the first page that is mapped.
    :param slots: guest-physical memory, (gpa, bytes, hpa) each, in whole pages, at most 32: which memory is behind a
        gfn. Without it :meth:`map` is told. :param ad: EPTP bit 6: the processor sets A and D.
    :raises ConfigError: memory, a pool or a slot that cannot be. :raises OutOfMemoryError: the host refuses the memory.

    Threads: of a machine, the thread that runs it, while the VMM handles a VM exit or a call of its user space;
    elsewhere every call is refused (PolicyError). Of one's own, one thread at a time: a call during another's is
    refused (PolicyError). A processor may walk the tables meanwhile, as on a computer.
    """

    def __cinit__(self, memory, *, pool, slots=(), ad=True):
        if memory is word_of_tables():
            return
        instance("memory", memory, PhysicalMemory)
        self.by_hand = True
        self.own = <Own *> calloc(1, sizeof(Own))
        if self.own == NULL:
            raise OutOfMemoryError("no memory for an Mmu")
        self.build(memory, slots, pool, flag("ad", ad))
        self.mmu, self.active, self.owner = &self.own.mmu, &_nobody, memory
        self.memory, self.rules = memory, kvm_rules(TODAY)
        self.describe()

    def __dealloc__(self):
        if self.own != NULL:
            mmu_free(&self.own.mmu)
            free(self.own)

    cdef int build(self, PhysicalMemory memory, slots, pool, bint ad) except -1:
        cdef MmuState *mmu = &self.own.mmu
        cdef uint64_t first, end
        if not memory.writable or memory.mem.segments != NULL:
            raise ConfigError("an Mmu needs writable memory without holes; give it a copy")
        if not isinstance(pool, range) or pool.step != 1:
            raise WrongTypeError(f"pool={shown(pool)}: give a range of host-physical addresses, such as range(0x10000, "
                                 "0x40000)")
        first, end = (whole_pages(f"pool.{name}", value, memory.mem.nbytes)
                      for name, value in (("start", pool.start), ("stop", pool.stop)))
        if first >= end:
            raise ConfigError(f"pool={shown(pool)} holds no page; give a range of at least 4096 addresses")
        if mmu_init(mmu, &memory.mem, 0, memory.mem.nbytes, FORMAT_EPT, ad, first, end):
            raise OutOfMemoryError(f"no memory for the reverse maps of {int(memory.mem.nbytes):#x} bytes")
        mmu.policy.tdp = mmu.policy.loss_of_dirty_flushes = mmu.anywhere = True
        for i, slot in enumerate(many("slots", slots, ConfigError)):
            self.add_slot(f"slots[{i}]", slot, memory.mem.nbytes)
        mmu_vcpu_create(mmu, &self.own.vcpu)
        mmu_set_root(mmu, 0, True)
        mmu.flush = False
        return 0

    cdef int add_slot(self, str name, slot, uint64_t nbytes) except -1:
        cdef MmuState *mmu = &self.own.mmu
        cdef uint64_t gpa, size, hpa
        cdef int number
        if not isinstance(slot, (tuple, list)) or len(slot) != 3:
            raise WrongTypeError(f"{name}={shown(slot)}: give (gpa, bytes, hpa)")
        gpa = whole_pages(f"{name}: gpa", slot[0], 1ULL << 48)
        size = whole_pages(f"{name}: bytes", slot[1], 1ULL << 48)
        hpa = whole_pages(f"{name}: hpa", slot[2], nbytes)
        if not size or gpa + size > 1ULL << 48 or size > nbytes or hpa > nbytes - size:
            raise ConfigError(f"{name}={shown(slot)}: guest-physical addresses have 48 bits, and memory {nbytes:#x} "
                              "bytes; give it at least a page")
        if hpa < mmu.pool_end and hpa + size > mmu.pool_start:
            raise ConfigError(f"{name}={shown(slot)}: the guest could write to the tables, which stand in the pool")
        number = slots_add(&mmu.slots, gpa >> 12, size >> 12, hpa)
        if number < 0:
            raise ConfigError(f"{name}={shown(slot)}: " + ("it overlaps another" if number == -2 else
                              "an Mmu has 32 slots"))
        mmu.slots.slot[number].huge = True      # whatever is aligned so
        return 0

    cdef int describe(self) except -1:
        cdef MmuState *mmu = self.mmu
        cdef const SpteFormat *f = mmu.format
        self.slots = []
        self.format = Format(f.read, f.write, f.execute, f.user, f.xd, f.accessed, f.dirty, f.host_write, f.may_write)
        self.tdp, self.prefetch = mmu.policy.tdp, mmu.policy.prefetch
        self.unsync, self.flooding = mmu.policy.unsync, mmu.policy.flooding
        self.fast_faults, self.mmio_caching = mmu.policy.fast, mmu.policy.mmio_caching
        self.nx_huge, self.ad = mmu.policy.nx_huge, mmu.ad
        return 0

    cdef int refuse(self) except -1:
        if not self.by_hand:
            return refuse_outside()
        if self.busy:
            raise PolicyError("another thread's call of this Mmu is under way; give each thread its own")
        return 0

    # ---- an EPT of one's own ---------------------------------------------------------------------------------

    cdef int hand(self) except -1:
        self.inside()
        if not self.by_hand:
            raise PolicyError("the EPT of a machine is its vCPUs'; use vcpu.roots and vcpu.vmread(Field.EPTP)")
        return 0

    @property
    def eptp(self):
        """For ``vmwrite(Field.EPTP, ...)``: the root, 4 levels, write-back, bit 6 by `ad` (SDM vol. 3, "EPTP").

        :raises PolicyError: of a machine's MMU.
        """
        self.hand()
        return self.mmu.sp[self.mmu.vcpu.root].hpa | 0x1E | (0x40 if self.mmu.ad else 0)

    @property
    def tables(self):
        """Table pages there are, of those that the pool holds: (used, all). :raises PolicyError: as :attr:`eptp`."""
        self.hand()
        return (self.mmu.counters.tables_made - self.mmu.counters.tables_zapped,
                self.mmu.pool_end - self.mmu.pool_start >> 12)

    def zap_all(self):
        """Every table page goes but the root, which is empty then and stays where it is. A flush is owed.

        :raises PolicyError: of a machine's MMU; use ``vcpu.roots.zap_all()``.
        """
        self.hand()
        entries_zap_all(self.mmu)

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
