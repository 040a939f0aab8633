"""The VMM's user space: memory slots and their dirty logs, as the ioctls of KVM have them (kvm_policy.md §4)."""

from collections import defaultdict

import numpy as np

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._arguments cimport choice, counted, flag, many, shown, whole, within
from fastmmu.arch.memtype_py cimport Mtrrs
from fastmmu.kvm.agile cimport kvm_mmu_counters
from fastmmu.kvm.host_calls cimport call_arm, call_drain, call_flush, call_zap_all
from fastmmu.kvm.kvm cimport (
    OMIT_ASIDS, OMIT_INVLPG, OMIT_MOVED, OMIT_PV, OMIT_REGISTERS, OMIT_REMOTE, OMIT_TABLES, Kvm,
)
from fastmmu.kvm.port cimport VirtualMachine
from fastmmu.mmu.agile cimport AgileMmu
from fastmmu.mmu.ageing cimport CLEAR_FLUSH_YOUNG, CLEAR_YOUNG, TEST_YOUNG, host_young
from fastmmu.mmu.dirty_log cimport (
    dirty_clear, dirty_get, dirty_open, dirty_protect, dirty_ring, dirty_stop, dirty_take, nx_recover,
)
from fastmmu.mmu.memslots cimport HOST_SHARED, Memslot, host_holds, slot_hpa, slot_whole, slots_delete
from fastmmu.mmu.mmu cimport Mmu, MmuCounters, Sp, id_index, id_owner, rmap_next
from fastmmu.mmu.notifier cimport host_merge, notify_end, notify_start
from fastmmu.mmu.pages cimport mmu_shadowed
from fastmmu.mmu.reclaim cimport host_give, host_take, host_wrote
from fastmmu.mmu.spte cimport MMIO_GENERATIONS
from fastmmu.threads.turns cimport Turn, Turns, this_thread
from fastmmu.counters import STATS, reader
from fastmmu.errors import ConfigError, OutOfMemoryError, PolicyError, StateError, WrongTypeError

_stats = reader(STATS)
_OMISSIONS = {"tables": OMIT_TABLES, "registers": OMIT_REGISTERS, "invlpg": OMIT_INVLPG, "moved": OMIT_MOVED,
              "remote": OMIT_REMOTE, "asids": OMIT_ASIDS, "pv": OMIT_PV}


cdef list linked(const Mmu *mmu, uint32_t place):
    # a list of entries, from its first on
    found = []
    while place:
        found.append((int(mmu.sp[id_owner(place)].hpa), int(id_index(place))))
        place = rmap_next(mmu, place)
    return found


cdef object _BOARD = object()            # none but vmm_of has it


cdef Vmm vmm_of(object board, Turns turns, Kvm *kvm, VirtualMachine vm):
    """The VMM of a board, which it keeps."""
    cdef Vmm vmm = Vmm.__new__(Vmm, _BOARD)
    vmm.board = board
    vmm.turns = turns
    vmm.kvm = kvm
    vmm.vm = vm
    return vmm


cdef int has_ended() except -1:
    raise StateError("this Machine has ended, by Host.remove: its memory is another's; ask it before that, make one "
                     "anew by Host.add")


cdef class Vmm:
    """Operations on the memory slots of a :class:`fastmmu.Machine`, from ``machine.vmm``.

    Slots are numbered from 0, the machine's memory; then those given to the machine, in their order.

    Threads: every call is safe at any time, from a policy's handler of a VM exit and from other threads, too. While the
    guest runs in another thread a call is done between two of its events, within milliseconds. Methods of a VMM in
    Python do not call its own (PolicyError).
    """

    def __cinit__(self, made=None):
        if made is not _BOARD:
            raise WrongTypeError("a Vmm is the `vmm` of a fastmmu.Machine; it is not made by hand")

    cdef Turn take(self):
        # the turn of a call
        cdef Turn turn = self.turns.take()
        if self.kvm.ended:
            has_ended()
        if self.vm is not None and self.vm.active == this_thread() != self.turns.handling:
            raise PolicyError("a method of the VMM is under way: its user space waits for the end; use what the VMM "
                              "itself has, or call this afterwards")
        return turn

    cdef int slot(self, number) except -1:
        if self.kvm.agile != NULL:
            raise StateError('mmu="agile": its slots stay as they are, without logs, and nothing takes pages away; use '
                             'mmu="ept" or "shadow" for that')
        chosen = whole("slot", number)
        if not 0 <= chosen < self.kvm.mmu.slots.n or not self.kvm.mmu.slots.slot[<int> chosen].npages:
            raise StateError(f"there is no slot {counted(chosen)}; slots are numbered from 0, those deleted are gone")
        return chosen

    cdef int paid(self) except -1:
        # the flush that an operation owes, which Linux requests of every vCPU
        self.kvm.mmu.counters.flush_requests += self.kvm.mmu.flush
        call_flush(self.vm, self.kvm.running)
        return 0

    cdef int reload(self) except -1:
        if call_zap_all(self.vm, self.kvm.running):
            raise OutOfMemoryError("no table page for a new root")
        return 0

    cdef Memslot *pages(self, number, first, count) except NULL:
        # the slot, which has these pages
        cdef Memslot *slot = &self.kvm.mmu.slots.slot[self.slot(number)]
        start, pages = whole("a page", first), whole("count", count)
        if not 0 <= start <= slot.npages or not 0 <= pages <= slot.npages - start:
            raise StateError(f"slot {number} has {slot.npages} pages, no pages {counted(start)} + {counted(pages)}")
        return slot

    cdef int layout_changed(self) except -1:
        # MMIO SPTEs bear 19 bits of the layout's generation: where these begin anew old ones would be taken for
        # new ones, so that every table goes (kvm_policy.md §4.4)
        if self.kvm.mmu.slots.generation & (MMIO_GENERATIONS - 1) == 0:
            self.reload()
        return 0

    @property
    def omit(self):
        """Flushes that this VMM leaves out, to see that they are missed: a set of "tables" (after changes of the shadow
        tables or the EPT), "registers" (guest CR0, CR3, CR4 under shadow paging), "invlpg", "moved" (on a physical CPU
        that a vCPU is new on), "remote" (of other vCPUs), "asids" (of all, where those of AMD begin anew), "pv"
        (that a guest asked for while a vCPU had no physical CPU)."""
        cdef Turn _turn = self.take()
        return {name for name, bit in _OMISSIONS.items() if self.kvm.omit & <uint32_t> bit}

    @omit.setter
    def omit(self, names):
        cdef uint32_t omit = 0
        for name in many("omit", names):
            omit |= <uint32_t> choice("a flush", name, _OMISSIONS, ConfigError)
        cdef Turn _turn = self.take()
        self.kvm.omit = omit

    def start_dirty_log(self, number, *, manual=False, initially_set=False):
        """Log the guest's writes to a slot from now on; nothing happens where it is logged already.

        :param manual: reading the log leaves it; :meth:`clear_dirty_log` does the rest
            (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
        :param initially_set: and it starts with every page set, so that nothing is protected before it is cleared.
        :raises StateError: no such slot. :raises OutOfMemoryError: no memory for the bitmap.
        """
        cdef Turn _turn = self.take()
        cdef int n = self.slot(number)
        cdef bint by_hand = flag("manual", manual), full = flag("initially_set", initially_set)
        call_drain(self.vm, self.kvm.running)
        cdef int opened = dirty_open(&self.kvm.mmu, n, by_hand, full)
        if opened < 0:
            raise OutOfMemoryError(f"no memory for the dirty log of slot {number}")
        if opened:
            if self.vm is not None:
                self.vm.ask("start_dirty_log", n)
            else:
                dirty_protect(&self.kvm.mmu, n)
        self.layout_changed()
        call_arm(self.vm, self.kvm.running)
        self.paid()

    def stop_dirty_log(self, number):
        """End the log of a slot. Writes to pages that it protected still fault, once each."""
        cdef Turn _turn = self.take()
        cdef int n = self.slot(number)
        call_drain(self.vm, self.kvm.running)
        dirty_stop(&self.kvm.mmu, n)
        self.layout_changed()
        call_arm(self.vm, self.kvm.running)
        self.paid()

    def dirty_log(self, number):
        """Pages of a slot written since its log was started or last read, which this call begins anew.

        :returns: array of bool, one a page of 4096 bytes. :raises StateError: no such slot, or it is not logged.
        """
        cdef Turn _turn = self.take()
        cdef int n = self.slot(number)
        cdef Memslot *slot = &self.kvm.mmu.slots.slot[n]
        if slot.dirty == NULL:
            raise StateError(f"slot {number} is not logged; call start_dirty_log first")
        words = np.zeros((slot.npages + 63) >> 6, np.uint64)
        cdef uint64_t[::1] out = words
        call_drain(self.vm, self.kvm.running)
        if self.vm is not None:
            dirty_take(&self.kvm.mmu, n, &out[0])
        else:
            dirty_get(&self.kvm.mmu, n, &out[0])
        found = np.unpackbits(words.view(np.uint8), count=slot.npages, bitorder="little").view(np.bool_)
        if self.vm is not None and not slot.manual:
            found = self.vm.ask("get_dirty_log", n, found)
            if not isinstance(found, np.ndarray) or found.dtype != np.bool_ or found.shape != (slot.npages,):
                raise PolicyError(f"get_dirty_log() returned {shown(found)}; return an array of {int(slot.npages)} "
                                  "bools, one a page of the slot")
        self.paid()
        return found

    def clear_dirty_log(self, number, first, count):
        """Begin the log anew for `count` pages from page `first` of a slot whose log is ``manual``.

        :raises StateError: no such log, or `first` or `count` is no multiple of 64 (the end of the slot aside).
        """
        cdef Turn _turn = self.take()
        cdef int n = self.slot(number)
        cdef Memslot *slot = &self.kvm.mmu.slots.slot[n]
        cdef uint64_t start, pages
        if slot.dirty == NULL or not slot.manual:
            raise StateError(f"slot {number} has no log to clear; start it with manual=True")
        self.pages(number, first, count)
        start, pages = first, count
        if start & 63 or (pages & 63 and start + pages < slot.npages):
            raise StateError(f"pages {first} + {count}: multiples of 64 within the slot's {slot.npages} pages")
        call_drain(self.vm, self.kvm.running)
        dirty_clear(&self.kvm.mmu, n, start, pages)
        self.paid()

    def use_dirty_ring(self, size):
        """Log to rings of `size` entries, one a vCPU, in place of bitmaps; :meth:`dirty_log` gives what was read from
        them.

        Before the ring of a vCPU is full an exit to user space reads all of them (counter ``ring_full``): 64 entries
        are kept free, with PML 512 more.

        :raises StateError: `size` is no power of two from 1024 to 65536, or a slot is logged already.
        """
        cdef Turn _turn = self.take()
        cdef int i
        cdef uint32_t entries
        size = whole("size", size)
        if size not in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise StateError(f"a ring of {counted(size)} entries: use a power of two from 1024 to 65536")
        for i in range(self.kvm.mmu.slots.n):
            if self.kvm.mmu.slots.slot[i].dirty != NULL or self.kvm.mmu.slots.ring.size:
                raise StateError("the ring is chosen once, before any slot is logged")
        entries = size
        if dirty_ring(&self.kvm.mmu, entries):
            raise OutOfMemoryError(f"no memory for rings of {size} entries")

    # ---- the host's MMU notifier (kvm_policy.md §6) ---------------------------------------------------------------

    def young(self, number, page, *, clear=False, flush=False):
        """Was a page of a slot used since its A flags were last cleared? The host asks so before it takes a page.

        Where the tables have no A flags, what `clear` does is as ``Config.ageing`` says.

        :param clear: the next call is about the time from now on (clear_young); else nothing changes (test_young).
        :param flush: with `clear`: cached translations go as well where it was used (clear_flush_young), so that a use
            by one of them does not go unseen.
        """
        cdef Turn _turn = self.take()
        cdef Memslot *slot = self.pages(number, page, 1)
        cdef bint clears = flag("clear", clear), flushes = flag("flush", flush)
        cdef int asked = (CLEAR_FLUSH_YOUNG if flushes else CLEAR_YOUNG) if clears else TEST_YOUNG
        cdef bint found
        if flushes and not clears:
            raise StateError("flush=True goes with clear=True: to ask alone changes nothing that could be stale")
        found = host_young(&self.kvm.mmu, slot, slot.base_gfn + <uint64_t> page, asked)
        if flushes:
            self.paid()
        else:
            call_flush(self.vm, self.kvm.running)
        return found

    def swap_out(self, number, page):
        """The host takes a page of an untouched slot to disk; False where it is not there, or is a shadowed table."""
        cdef Turn _turn = self.take()
        cdef Memslot *slot = self.pages(number, page, 1)
        cdef bint done = host_take(&self.kvm.mmu, slot, slot.base_gfn + <uint64_t> page)
        call_flush(self.vm, self.kvm.running)
        return done

    def make_huge(self, number, page, *, huge=True):
        """The host makes one page of the 2 MB around a page of a slot, as khugepaged does, or 512 of a huge one. The
        VMM is told of it as of any change, and maps them anew at the next access, with one entry if they are huge.

        :returns: False where they are so already, or are not all in the slot.
        :raises StateError: no such page; the machine was made without ``Config(host_thp=)``, or has data caches, which
            see the host's pages where they were.
        """
        cdef Turn _turn = self.take()
        cdef Memslot *slot = self.pages(number, page, 1)
        cdef bint one = flag("huge", huge)
        cdef uint64_t base = slot.base_gfn + <uint64_t> page & ~<uint64_t> 511, area = base - slot.base_gfn >> 9
        if slot.whole == NULL or self.board.config.caches is not None:
            raise StateError("which pages of the host are huge changes with Config(host_thp=), and without caches=")
        if base < slot.base_gfn or base + 512 > slot.base_gfn + slot.npages or slot_whole(slot, base) == one:
            return False
        notify_start(&self.kvm.mmu, slot, base, 512)
        slot.whole[area >> 6] ^= <uint64_t> 1 << (area & 63)
        notify_end(&self.kvm.mmu, slot)
        call_flush(self.vm, self.kvm.running)
        return True

    def invalidate_range_start(self, number, first, count):
        """The host begins to change what is behind `count` pages from page `first` of a slot: no translation leads to
        them when this returns, and none is made until :meth:`invalidate_range_end`.

        A fault that wants one of them meanwhile begins anew (counter ``retries``); as it would for ever, the access
        stops with a :class:`StateError`, and can be repeated. Several such changes may be under way: then all pages of
        a slot from the first to the last are held back, as in KVM.

        :raises StateError: the slot has no such pages.
        """
        cdef Turn _turn = self.take()
        cdef Memslot *slot = self.pages(number, first, count)
        notify_start(&self.kvm.mmu, slot, slot.base_gfn + <uint64_t> first, count)
        call_flush(self.vm, self.kvm.running)

    def invalidate_range_end(self, number):
        """The change of a slot's pages begun last has ended; a fault that looked a page up before must look again.

        :raises StateError: none is under way.
        """
        cdef Turn _turn = self.take()
        cdef Memslot *slot = &self.kvm.mmu.slots.slot[self.slot(number)]
        if not slot.invalidating:
            raise StateError(f"no change of pages of slot {number} is under way; call invalidate_range_start first")
        notify_end(&self.kvm.mmu, slot)

    def merge(self, number, pages):
        """The host merges pages of an untouched slot that hold the same, as Linux' KSM does: they become one, which can
        only be read; a write gives its page a copy of its own (counter ``copied``).

        Pages that are not there, or are shadowed tables, are left out. In the simulation each keeps its address.

        :returns: number of pages merged, 0 where fewer than two are left. :raises StateError: no such pages, a page
            twice, or contents differ. :raises OutOfMemoryError: no memory for the groups.
        """
        pages = [whole("a page", each) for each in many("pages", pages)]
        cdef Turn _turn = self.take()
        cdef Memslot *slot = &self.kvm.mmu.slots.slot[self.slot(number)]
        cdef uint64_t page
        cdef uint64_t[::1] taken
        chosen = []
        contents = None
        if len({*pages}) != len(pages):
            raise StateError("a page stands twice among those to merge")
        for one in pages:
            self.pages(number, one, 1)
            page = one
            if slot.host == NULL or not host_holds(slot.host[page]):
                continue
            if mmu_shadowed(&self.kvm.mmu, slot.base_gfn + page):
                continue
            words = self.board.memory.u64[slot_hpa(slot, slot.base_gfn + page) >> 3:][:512]
            if contents is None:
                contents = words
            elif not np.array_equal(words, contents):
                raise StateError(f"pages {chosen[0]} and {page} differ: only equal pages can be one")
            chosen.append(page)
        if len(chosen) < 2:
            return 0
        taken = np.array(chosen, np.uint64)
        if host_merge(&self.kvm.mmu, slot, &taken[0], len(chosen)):
            raise OutOfMemoryError("no memory for the groups of merged pages")
        call_flush(self.vm, self.kvm.running)
        return len(chosen)

    def recover_nx(self, ratio=60):
        """One period of the thread that gives large pages back: of the regions mapped by small pages because code ran
        there (``Config.nx_huge_pages``, counter ``nx_lpage_splits``) one in `ratio` is unmapped, those longest so
        first, at least one; 0: none (KVM's nx_huge_pages_recovery_ratio).

        :returns: number of regions unmapped. :raises StateError: a ratio out of range.
        """
        cdef Turn _turn = self.take()
        cdef uint64_t before = self.kvm.mmu.counters.nx_recovered
        cdef uint32_t one_in = within("ratio", ratio, 0, 0xFFFFFFFF)    # 0: none
        if one_in:
            nx_recover(&self.kvm.mmu, one_in)
            self.paid()
        return self.kvm.mmu.counters.nx_recovered - before

    # ---- memory ---------------------------------------------------------------------------------------------------

    def guest_caching(self, Mtrrs mtrrs=None, *, uncached=None):
        """The guest changes its MTRRs, or CR0.CD: with non-coherent DMA every table of the VMM goes
        (KVM's vmx_get_mt_mask; kvm_policy.md §7).

        :param uncached: CR0.CD; None: as it is.
        """
        cdef Turn _turn = self.take()
        cdef bint disabled = self.kvm.mmu.uncached if uncached is None else flag("uncached", uncached)
        if mtrrs is not None:
            self.kvm.mmu.mtrrs = mtrrs.state
        self.kvm.mmu.uncached = disabled
        if self.kvm.mmu.noncoherent:
            self.reload()

    def delete_slot(self, number):
        """Take a slot away. Every table of the VMM goes with it, as in KVM.

        :raises StateError: no such slot, or slot 0, in which the guest's tables lie.
        """
        cdef Turn _turn = self.take()
        cdef int n = self.slot(number)
        if n == 0:
            raise StateError("slot 0 is the machine's own memory and cannot be deleted")
        call_drain(self.vm, self.kvm.running)
        # the tables go first: their entries are found through the slots
        self.reload()
        slots_delete(&self.kvm.mmu.slots, n)
        call_arm(self.vm, self.kvm.running)

    def touch(self, number, first, count):
        """The host writes pages of an untouched slot, as a loader does: `count` pages from page `first` of the slot."""
        cdef Turn _turn = self.take()
        cdef Memslot *slot = self.pages(number, first, count)
        cdef uint64_t start = first, i
        if slot.host != NULL:
            for i in range(start, start + <uint64_t> count):
                if host_holds(slot.host[i]) or slot.host[i] == HOST_SHARED:
                    host_wrote(&self.kvm.mmu, slot, slot.base_gfn + i)
                else:
                    host_give(&self.kvm.mmu, slot, slot.base_gfn + i)
        call_flush(self.vm, self.kvm.running)

    def counters(self):
        """What the MMU did: dict of int. pages: leaf entries there are, by size 4K, 2M, 1G; resident: pages that the
        host holds for untouched slots."""
        cdef Turn _turn = self.take()
        cdef MmuCounters c = kvm_mmu_counters(self.kvm)
        return {**dict(c), "resident": self.kvm.mmu.slots.resident}

    def stats(self):
        """By the names of KVM's statistics (kvm_vcpu_stat, kvm_vm_stat; kvm_policy.md §12), where they mean what KVM's
        do: dict of int.

        Of the TDP MMU those of table pages are 0, as in KVM; shadow_bytes counts all of them. insn_emulation: what
        processors with decode assists leave to the VMM. tlb_flush: of a machine with one vCPU. Three have no statistic
        of KVM's behind them: dirty_pages, pml_full, shadow_bytes. Not among them is max_mmu_page_hash_collisions: the
        hash is not KVM's.
        """
        cdef Turn _turn = self.take()
        cdef dict mmu = kvm_mmu_counters(self.kvm)
        mmu["shadow"] = not self.kvm.mmu.policy.tdp
        run = self.board.counters()
        return _stats({"mmu": mmu, "stats": dict(self.kvm.stats), "run": run,
                       "exits": defaultdict(int, run["exits_by_reason"])})

    def table_pages(self):
        """Every table page that there is: list of (gfn, level, direct, access, registers, unsync), in no order.

        gfn: the guest table that it shadows; of a direct page the first gfn mapped. access: what the entries that lead
        to it allow, X = 1, W = 2, U = 4; registers: what they make of the guest's tables (KVM's
        kvm_mmu_page_role; kvm_policy.md §1).
        unsync: the guest may have changed its table since it was read.
        """
        cdef Turn _turn = self.take()
        cdef Sp *sp
        cdef uint32_t i
        found = []
        for i in range(self.kvm.mmu.n_sp):
            sp = &self.kvm.mmu.sp[i]
            if sp.used:
                found.append((int(sp.gfn), int(sp.level), bool(sp.direct), int(sp.access), int(sp.role),
                              bool(sp.unsync)))
        return found

    def nested_tables(self):
        """Of agile paging: the guest's tables at which walks switch to nested mode, list of (gfn, level), by gfn
        (agile.md §4; KVM has none); else empty."""
        cdef Turn _turn = self.take()
        cdef AgileMmu *a = self.kvm.agile
        cdef uint32_t i
        return sorted((int(a.table[i].gfn), int(a.table[i].level)) for i in range(0 if a == NULL else a.n))

    def reverse_maps(self):
        """Which entries lead where, as the MMU has it noted: (pages, tables), two dicts of lists of entries, each as
        (host-physical address of its table page, index) (KVM's rmap_add, pte_list_remove; kvm_policy.md §2.3).

        pages: of each page mapped by leaf entries, by (host-physical address, size). tables: of every table page there
        is, by (host-physical address, level).
        """
        cdef Turn _turn = self.take()
        cdef Mmu *mmu = &self.kvm.mmu
        cdef uint64_t frame
        cdef uint32_t i
        pages = {}
        for frame in range(mmu.slots.frames):
            if mmu.rmap[frame]:
                pages[int(mmu.slots.base + (frame << 12)), 1 << 12] = linked(mmu, mmu.rmap[frame])
            if not frame & 511 and mmu.rmap_large[frame >> 9]:
                pages[int(mmu.slots.base + (frame << 12)), 1 << 21] = linked(mmu, mmu.rmap_large[frame >> 9])
        return pages, {
            (int(mmu.sp[i].hpa), int(mmu.sp[i].level)): linked(mmu, mmu.sp[i].parents)
            for i in range(mmu.n_sp) if mmu.sp[i].used
        }
