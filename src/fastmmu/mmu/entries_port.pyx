"""Entries by page, many at a time, in the hands of a VMM in Python: `Entries`, a part of `port.Mmu`."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu._arguments cimport flag, many, shown, whole, within
from fastmmu.arch.bits cimport EPT_IPAT
from fastmmu.mmu.entries cimport (
    ENTRIES_DONE, ENTRIES_NO_ROOT, OWN_TYPE, RIGHT_R, RIGHT_W, Mapping, SpteRow, entries_lookup, entries_lose,
    entries_map, entries_mark,
)

import numpy as np

from fastmmu.dtypes import SPTE_DTYPE
from fastmmu.errors import PolicyError, WrongTypeError

cdef enum:
    MOST = 1 << 24              # pages of a call

assert sizeof(SpteRow) == SPTE_DTYPE.itemsize


cdef object array_of(str name, given):
    # of whole numbers, as uint64
    if isinstance(given, range):
        n = max(0, (given.stop - given.start + given.step - (1 if given.step > 0 else -1)) // given.step)
        if n > MOST:
            raise PolicyError(f"{name}={shown(given)} has more than {MOST} pages; give parts of it")
        if not n:
            return np.empty(0, dtype=np.uint64)
        ends = given[0], given[n - 1]
        if min(ends) < 0 or max(ends) >> 64:
            raise PolicyError(f"{name}={shown(given)} has numbers that do not fit 64 bits")
        step = np.uint64(given.step & 0xFFFFFFFFFFFFFFFF)
        return np.uint64(given[0]) + np.arange(n, dtype=np.uint64) * step
    if not isinstance(given, np.ndarray):
        return np.array([within(f"{name}[{i}]", each, 0, 0xFFFFFFFFFFFFFFFF, PolicyError)
                         for i, each in enumerate(many(name, given, PolicyError))], dtype=np.uint64)
    if given.dtype.kind not in "iu":
        raise WrongTypeError(f"{name} has dtype {given.dtype}; give an array of integers")
    if given.ndim != 1:
        raise PolicyError(f"{name} has shape {given.shape}; give a one-dimensional array")
    if given.size > MOST:
        raise PolicyError(f"{name} has {given.size} pages; give at most {MOST} at a time")
    if given.dtype.kind == "i" and given.size and given.min() < 0:
        raise PolicyError(f"{name}[{int(given.argmin())}]={int(given.min())} is no page")
    return np.array(given, dtype=np.uint64, order="C")


cdef class Entries(Tables):
    """Entries by page: one, or as many as a NumPy array names; what comes back is one value, or an array.

    A page is a guest-physical page number (gfn, gpa >> 12): an int; a range; an array or sequence of whole numbers, at
    most 16777216. Of an array all is checked before anything is done.

    Threads: as of :class:`fastmmu.mmu.port.Mmu`.
    """

    cdef object pages(self, str name, given, bint looked_up=False):
        # (array of uint64, whether one int was given); of addresses that the tables translate
        cdef uint64_t limit = 1ULL << 52 if looked_up and not self.mmu.format.nested else 1ULL << 36
        cdef bint one = not isinstance(given, np.ndarray) and hasattr(type(given), "__index__")
        if one:
            return np.array([within(name, given, 0, limit - 1, PolicyError)], dtype=np.uint64), True
        found = array_of(name, given)
        if found.size and found.max() >= limit:
            at = int(found.argmax())
            raise PolicyError(f"{name}[{at}]={int(found[at]):#x}: these tables translate pages below {limit:#x}")
        return found, False

    cdef int direct(self) except -1:
        # whether a gfn has one entry, of the EPT
        return self.mmu.format.nested

    cdef int ended(self, int end, str name, gfns, size_t done) except -1:
        if end == ENTRIES_DONE:
            return 0
        if end == ENTRIES_NO_ROOT:
            raise PolicyError("no root is loaded; use vcpu.roots.load_direct()")
        raise PolicyError(f"{name}: at gfn {int(gfns[done]):#x}, after {int(done)} others, no table page is left; "
                          + ("give a larger pool" if self.by_hand else "use vcpu.roots.zap_all(), and load a root"))

    cdef int own_pages(self, pfns, size_t n, int level) except -1:
        # memory named by hand
        cdef const uint64_t[::1] pfn = pfns
        cdef uint64_t size = 1ULL << 9 * (level - 1), frames = self.mmu.slots.frames, i
        if <size_t> pfn.shape[0] != n:
            raise PolicyError(f"{n} gfns and {pfn.shape[0]} pfns; give one each")
        for i in range(n):
            if pfn[i] & (size - 1):
                raise PolicyError(f"pfns[{i}]={pfn[i]:#x} is not aligned to a page of level {level}")
            if pfn[i] > frames - size or frames < size:
                raise PolicyError(f"pfns[{i}]={pfn[i]:#x} is outside of memory, which has {frames:#x} pages")
            if ((pfn[i] << 12) < self.mmu.pool_end and (pfn[i] + size) << 12 > self.mmu.pool_start):
                raise PolicyError(f"pfns[{i}]={pfn[i]:#x}: the tables of this Mmu stand there")
        return 0

    # ---- making ----------------------------------------------------------------------------------------------

    def map(self, gfns, pfns=None, *, level=1, rights=7, memory_type=None, ignore_pat=None):
        """Map pages by entries of the EPT, table pages on the way made where there are none; A and D are clear. A large
        entry over a page of 4 KB is split, a table below a large one goes.

        :param gfns: pages; of level 2 the first of each 2 MB. :param pfns: host-physical page numbers, one each; None:
            the memory of the slot that holds the gfn, given by the host where it is not there yet. A machine's MMU
            takes none. :param level: 1: 4 KB, 2: 2 MB. :param rights: R=1 W=2 X=4; W needs R.
        :param memory_type: 0, 1, 4, 5 or 6 (:class:`fastmmu.MemoryType`); None: as KVM has it, which is write-back, the
            guest's PAT ignored, but for devices (kvm_policy.md §7). :param ignore_pat: IPAT, with a memory type.
        :returns: whether it is mapped, bool or array of bool. False: no slot holds it; W of a read-only one; the host
            is changing it; 2 MB that the host does not back with one page, or of which writes are logged
            (kvm_policy.md §4.3). Without W where the host lets nobody write.
        :raises PolicyError: values that are none; under shadow paging, where entries are of the guest's linear
            addresses; no table page is left: those before are mapped.
        """
        cdef Mapping m
        cdef uint64_t done = 0
        cdef int end
        cdef const uint64_t[::1] gfn, pfn
        cdef const uint64_t *memory = NULL
        cdef uint8_t[::1] out
        self.inside()
        if not self.direct():
            raise PolicyError("under shadow paging an entry maps a linear address of the guest's; use walk(), "
                              "TableWalk.child() and TableWalk.set()")
        m.level = within("level", level, 1, 2, PolicyError)
        m.rights = within("rights", rights, 1, 7, PolicyError)
        if m.rights & RIGHT_W and not m.rights & RIGHT_R:
            raise PolicyError(f"rights={m.rights}: an entry that can be written and not read is misconfigured; add 1")
        m.memory_type = OWN_TYPE
        if not self.mmu.format.memory_type and (memory_type is not None or not m.rights & RIGHT_R):
            raise PolicyError("entries of AMD's nested page tables have R, and the type that KVM gives them; leave out "
                              "memory_type, and give rights with R=1")
        if memory_type is not None:
            given = whole("memory_type", memory_type)
            if given not in (0, 1, 4, 5, 6):
                raise PolicyError(f"memory_type={shown(given)}: choose from 0, 1, 4, 5, 6 (fastmmu.MemoryType)")
            m.memory_type = given << 3
        if ignore_pat is not None:
            if memory_type is None:
                raise PolicyError("ignore_pat goes with a memory_type, such as fastmmu.MemoryType.WB")
            m.memory_type |= EPT_IPAT if flag("ignore_pat", ignore_pat) else 0
        pages, one = self.pages("gfns", gfns)
        if m.level == 2 and (pages & np.uint64(511)).any():
            at = int((pages & np.uint64(511)).argmax())
            raise PolicyError(f"gfns[{at}]={int(pages[at]):#x} is not aligned to 2 MB; give a multiple of 0x200")
        if pfns is not None:
            if not self.by_hand:
                raise PolicyError("the memory behind a gfn of a machine is its slot's; leave pfns out")
            frames = self.pages("pfns", pfns)[0]
            self.own_pages(frames, pages.size, m.level)
            if pages.size:
                pfn = frames
                memory = &pfn[0]
        mapped = np.zeros(pages.size, np.bool_)
        if pages.size:
            gfn, out = pages, mapped.view(np.uint8)
            self.busy = True
            with nogil:
                end = entries_map(self.mmu, &gfn[0], memory, gfn.shape[0], &m, &out[0], &done)
            self.busy = False
            self.ended(end, "map", pages, done)
        return bool(mapped[0]) if one else mapped

    def mark_mmio(self, gfns):
        """Mark pages as MMIO, by entries of level 1 that the processor takes for misconfigured: an access exits, and
        :attr:`TableWalk.mmio_gfn` and :meth:`lookup` tell (kvm_policy.md §4.4).

        :param gfns: as of :meth:`map`. :raises PolicyError: as :meth:`map`.
        """
        cdef uint64_t done = 0
        cdef int end
        cdef const uint64_t[::1] gfn
        self.inside()
        if not self.direct():
            raise PolicyError("under shadow paging a mark is of a linear address of the guest's; use walk() and "
                              "TableWalk.set()")
        pages = self.pages("gfns", gfns)[0]
        if pages.size:
            gfn = pages
            self.busy = True
            with nogil:
                end = entries_mark(self.mmu, &gfn[0], gfn.shape[0], &done)
            self.busy = False
            self.ended(end, "mark_mmio", pages, done)

    # ---- looking up ------------------------------------------------------------------------------------------

    def lookup(self, pages):
        """What the tables have for pages, below the root in use.

        :param pages: gfns; under shadow paging linear addresses >> 12, which is what those tables translate.
        :returns: rows of dtype ``fastmmu.dtypes.SPTE_DTYPE``: entry, hpa, level, rights, mapped, mmio, accessed, dirty;
            one, or an array of them.
        """
        cdef const uint64_t[::1] page
        cdef uint8_t[::1] raw
        self.inside()
        given, one = self.pages("pages", pages, True)
        found = np.zeros(given.size, SPTE_DTYPE)
        if given.size:
            page, raw = given, found.view(np.uint8)
            self.busy = True
            with nogil:
                entries_lookup(self.mmu, &page[0], page.shape[0], <SpteRow *> &raw[0])
            self.busy = False
        return found[0] if one else found

    # ---- taking away -----------------------------------------------------------------------------------------

    cdef object _lose(self, gfns, uint64_t shown_by, uint64_t bits):
        cdef const uint64_t[::1] gfn
        cdef uint8_t[::1] out
        cdef bint direct = self.direct()
        pages, one = self.pages("gfns", gfns)
        found = np.zeros(pages.size, np.bool_)
        if pages.size:
            gfn, out = pages, found.view(np.uint8)
            self.busy = True
            with nogil:
                entries_lose(self.mmu, direct, &gfn[0], gfn.shape[0], shown_by, bits, &out[0])
            self.busy = False
        return bool(found[0]) if one else found

    def zap(self, gfns):
        """Clear the entries that map pages, and marks of MMIO; a large entry goes as a whole. Table pages stay
        (kvm_unmap_gfn_range). A flush is owed: :attr:`flush`.

        :param gfns: as of :meth:`map`. :returns: whether they were mapped, bool or array of bool.
        """
        self.inside()
        return self._lose(gfns, 0, 0)

    def write_protect(self, gfns, *, restorable=True):
        """Take the right to write from the entries that map pages; a large entry loses it for all of its pages. A flush
        is owed.

        :param gfns: as of :meth:`map`. :param restorable: the right may come back by a fault alone, as where writes are
            logged; False: not so, as of a guest's table that is shadowed (rmap_write_protect; kvm_policy.md §2.3, §5).
        :returns: whether they could be written, bool or array of bool.
        """
        self.inside()
        cdef uint64_t write = self.mmu.format.write, may_write = self.mmu.format.may_write
        return self._lose(gfns, write, write if flag("restorable", restorable) else write | may_write)

    def clear_dirty(self, gfns):
        """Clear D in the entries that map pages: the processor sets it again, and with PML logs the page (ept.md §6,
        §7). A flush is owed.

        :param gfns: as of :meth:`map`. :returns: whether D was set, bool or array of bool: of a large entry, that any
            of its pages was written. :raises PolicyError: entries have no D; use :meth:`write_protect`.
        """
        self.inside()
        if not self.mmu.ad:
            raise PolicyError("entries of these tables have no D flag; use write_protect()")
        return self._lose(gfns, self.mmu.format.dirty, self.mmu.format.dirty)

    @property
    def flush(self):
        """Entries lost rights, or went: cached translations may be stale until they are flushed, by INVEPT or INVVPID;
        a bool. Whoever flushes clears it; of a machine it is ``vm.flush``."""
        self.inside()
        return self.mmu.flush != 0

    @flush.setter
    def flush(self, value):
        self.inside()
        self.mmu.flush = flag("flush", value)
