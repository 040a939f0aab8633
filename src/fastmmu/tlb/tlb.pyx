"""The tagged TLB of one physical CPU, for Python."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport (
    choice, flag, guest_physical_address, linear_address, many, page_address, physical_address, shown, whole, within,
    word, words_in,
)
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X, Walk
from fastmmu.tlb.attach cimport attach, detach, reset_extensions, set_pages
from fastmmu.tlb.entries cimport (
    EXTENDED, F_D, F_EW, F_G, F_K, F_R, F_S, F_U, F_W, F_X, LOST_SOME, MAX_THREADS, NO_EPT, TLB_FRAME, TlbPort,
    tlb_switch
)
from fastmmu.tlb.extension cimport aim_at_pages, fill_walked
from fastmmu.tlb.held cimport MISSED, Held, held_begin, held_fill, held_first, held_second, not_linear
from fastmmu.tlb.invalidate cimport (
    inv_cr0_pg, inv_cr4_all, inv_cr4_pcid, inv_ept_violation, inv_invept, inv_invlpg, inv_invlpga, inv_invpcid,
    inv_invvpid, inv_mov_cr3, inv_page_fault, inv_reset, inv_tlb_control, inv_transition, inv_vmfunc
)
from fastmmu.tlb.lookup cimport (
    tlb_epsc, tlb_epsc_fill, tlb_gpm, tlb_gpm_fill, tlb_l1, tlb_l2, tlb_psc, tlb_psc_fill, tlb_value, tlb_value_of_walk
)
from fastmmu.tlb.making cimport tlb_arrays_of, tlb_free, tlb_new
from fastmmu.tlb.readout cimport counters_of, entries_of, live_of
from fastmmu.tlb.siblings cimport _Core
from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError, WrongTypeError
from fastmmu.tlb.geometry import PAGES
from fastmmu.tlb.geometry import geometry as make_geometry
from fastmmu.tlb.readout import CAUSE_NAMES, KIND_NAMES, UNIT_NAMES

__all__ = ["CAUSE_NAMES", "KIND_NAMES", "TLB", "UNIT_NAMES"]

_SIZES = {name: i for i, name in enumerate(PAGES)}
_GUEST_SIZES = {**_SIZES, "4m": 3}
_FLAGS = {letter: i for i, letter in enumerate("usrwexdg")}
_CAUSES = {name: i for i, name in enumerate(CAUSE_NAMES)}
_ACCESS = {"r": ACC_R, "w": ACC_W, "rw": ACC_RW, "x": ACC_X}
_GUEST_SHIFTS = (0, 12, 21, 22, 30)
_EPT_SHIFTS = (0, 12, 21, 30)
_VALUE_BITS = TLB_FRAME | F_U | F_S | F_R | F_W | F_EW | F_X | F_D | F_G | F_K | 15 << 8 | 15 << 52 | 7 << 56


cdef int _access(object access) except -1:
    return choice("access", access, _ACCESS)


cdef uint64_t _root(object eptrta) except? 0:
    return NO_EPT if eptrta is None else page_address("eptrta", eptrta)


cdef uint32_t _vpid(object vpid) except? 0xBAD:
    return within("vpid", vpid, 0, 0xFFFF)


cdef uint32_t _pcid(object pcid) except? 0xBAD:
    return within("pcid", pcid, 0, 0xFFF)


cdef uint64_t _entry(object value) except? 0xBAD:
    # what TLB.value makes
    cdef uint64_t found = word("value", value)
    if found & ~<uint64_t> _VALUE_BITS or found >> 8 & 3 == 3 or found == 0:
        raise StateError(f"value={found:#x} is no value of an entry; make it by TLB.value")
    return found


cdef uint64_t _table(object value) except? 0xBAD:
    # of a paging-structure cache: the walker's own
    return within("value", value, 1, ~<uint64_t> 0)


cdef int _shift(str name, object value, tuple known) except -1:
    value = whole(name, value)
    if value not in known:
        raise StateError(f"{name}={shown(value)}: choose from {', '.join([str(each) for each in known])}")
    return value


@cython.no_gc_clear                             # whose memory it is, is asked at its end
cdef class TLB:
    """All caches of translations of one physical CPU: first and second level, guest-physical mappings and
    paging-structure caches, tagged by VPID, PCID and EPT root.

    The CPU has one context in force, see :meth:`switch`; lookups and fills are its. Invalidations name theirs.
    What the values of entries mean: the head of tlb/lookup.pxd.

    :param geometry: a preset's name or a :class:`fastmmu.tlb.geometry.Geometry`.
    :param max_contexts: how many contexts can have entries at a time, 8..65534; when they run out, one is flushed.
    :raises ConfigError: an unknown preset or an impossible geometry.

    Threads: calls take turns. While its machine runs, or :meth:`simulate` does, in another thread, those that change it
    are refused (PolicyError); counters, entries and the like can be read, between two events. The handler of a VM exit
    may do both.
    """

    def __cinit__(self, geometry="skylake", *, max_contexts=65534):
        cdef uint32_t most = within("max_contexts", max_contexts, 8, 65534, ConfigError)
        g = self.geometry = make_geometry(geometry)
        self.turns = Turns()
        self.t = tlb_new(most)
        if self.t == NULL:
            raise OutOfMemoryError("no memory for the contexts of a TLB; give fewer by max_contexts")
        tlb_arrays_of(self.t, g)
        attach(self.t, g.extension)

    def __dealloc__(self):
        if self.core is None:
            if self.t != NULL:
                detach(self.t)
            tlb_free(self.t)

    @staticmethod
    def hyperthreads(threads=2, geometry="skylake", *, max_contexts=65534):
        """The TLBs of the hyperthreads of one core, which share what ``geometry.shared`` names.

        Each entry has the tag of its hyperthread: none finds or invalidates one of another's, whatever VPID, PCID and
        EPT root they have. A fill displaces whichever entry of a shared array is due (tlb/siblings.pxd). They take
        turns with each other. Arrays that grow are not shared, as nothing makes room there.

        :param threads: 1..8. :param geometry, max_contexts: as of the constructor; all have 65534 contexts together.
        :returns: a tuple of :class:`TLB`.
        """
        cdef int n = within("threads", threads, 1, MAX_THREADS, ConfigError)
        cdef _Core core = _Core()
        cdef TLB tlb
        g = make_geometry(geometry)
        if n > 1 and g.extension:
            raise ConfigError(f"TLB {g.name!r}: hyperthreads do not share an extension; leave it out, or the threads")
        tlbs = tuple([TLB(g, max_contexts=max_contexts) for _ in range(n)])
        if n > 1 and g.shared and not g.unbounded:
            for tlb in tlbs:
                core.add(tlb.t)
                tlb.core = core
                tlb.turns = (<TLB> tlbs[0]).turns
            core.join(g.shared)
        return tlbs

    @property
    def siblings(self):
        """Number of hyperthreads that share something with it, itself among them; 1: none."""
        return 1 + int(self.t.peers)

    # ---- the context in force, lookups, fills -----------------------------------------------------------------

    def switch(self, vpid=0, pcid=0, eptrta=None):
        """Puts a context in force; invalidates nothing. `eptrta`: EPTP bits 51:12, None: EPT is not in use."""
        cdef Turn _turn = self.turns.apart()
        tlb_switch(self.t, _vpid(vpid), _pcid(pcid), _root(eptrta))

    @staticmethod
    def value(pa, size="4k", *, page=None, flags="urwexd", key=0, memory_type=0):
        """The value of an entry (uint64).

        :param pa: any physical address in the page. :param size: "4k", "2m" or "1g", the smaller of guest and EPT page.
        :param page: size of the guest's page ("4m" too); default: `size`.
        :param flags: of u user, s supervisor, r EPT read, w guest write, e EPT write, x fetch, d dirty, g global.
        :param key: protection key, 0..15. :param memory_type: 0..7.
        """
        cdef uint64_t bits = physical_address("pa", pa), pkey = within("key", key, 0, 15)
        cdef uint64_t kind = within("memory_type", memory_type, 0, 7), rights = 0
        cdef int held = choice("size", size, _SIZES)
        cdef int guest = held if page is None else choice("page", page, _GUEST_SIZES)
        if not isinstance(flags, str):
            raise WrongTypeError(f"flags must be text, not {shown(flags)}")
        for letter in flags:
            rights |= <uint64_t> 1 << <int> choice("a letter of flags", letter, _FLAGS)
        if pkey == 0:
            rights |= F_K
        return tlb_value(bits, held, guest, rights) | pkey << 52 | kind << 56

    @staticmethod
    def value_of_walk(pa, *, guest_shift=12, ept_shift=0, us=True, rw=True, xd=False, global_page=False, dirty=True,
                      ept_rights=7, ept_dirty=True, key=0, memory_type=0, mbec=False):
        """The value under which the outcome of a walk is cached (SDM vol. 3, "Creating and Using
        Cached Translation Information"; tlb.md §1.1, R3 and R4).

        :param guest_shift, ept_shift: log2 of the page sizes; 0: paging off, no EPT. :param us, rw, xd, global_page,
            dirty: of the guest's entries, ANDed or ORed. :param ept_rights: R 1, W 2, X 4, XU 8, ANDed.
        """
        cdef Walk w
        memset(&w, 0, sizeof(w))
        w.pa = physical_address("pa", pa)
        w.guest_shift, w.ept_shift = _shift("guest_shift", guest_shift, _GUEST_SHIFTS), _shift("ept_shift", ept_shift,
                                                                                               _EPT_SHIFTS)
        w.us, w.rw, w.xd = flag("us", us), flag("rw", rw), flag("xd", xd)
        w.global_page, w.dirty = flag("global_page", global_page), flag("dirty", dirty)
        w.ept_rights, w.ept_dirty = within("ept_rights", ept_rights, 0, 15), flag("ept_dirty", ept_dirty)
        w.pkey, w.ept_mt = within("key", key, 0, 15), within("memory_type", memory_type, 0, 7)
        return tlb_value_of_walk(&w, flag("mbec", mbec))

    def lookup(self, la, access="r"):
        """(level, value): 1 first level, 2 second level, which refills the first; (0, 0): a miss of both."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = linear_address("la", la)
        cdef int acc = _access(access)
        aim_at_pages(self.t)
        cdef uint64_t value = tlb_l1(self.t, acc, at)
        self.t.c.lookups[self.t.port[acc].l1.id] += 1
        if value:
            return 1, value
        value = tlb_l2(self.t, acc, at)
        return (2 if value else 0), value

    def fill(self, la, value, access="r"):
        """Caches what a walk found, in both levels; the value as the first level has it."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = linear_address("la", la), entry = _entry(value)
        aim_at_pages(self.t)
        return fill_walked(self.t, _access(access), at, entry, False)

    def refill(self, la, value, access="r"):
        """As :meth:`fill`, after dropping what `la` hits now: its rights or dirty flag did not suffice."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = linear_address("la", la), entry = _entry(value)
        aim_at_pages(self.t)
        return fill_walked(self.t, _access(access), at, entry, True)

    def query_pages(self, la, value, gpa):
        """What :meth:`fill` finds around a page, for extensions: 4K pages, uint64 arrays; `la` ascends."""
        cdef Turn _turn = self.turns.apart()
        cdef const uint64_t[::1] values = words_in("value", value)
        for i in range(values.shape[0]):
            _entry(values[i])
        set_pages(self.t, words_in("la", la), values, words_in("gpa", gpa))

    def gpm(self, gpa):
        """Value of the guest-physical mapping of `gpa`, or 0."""
        cdef Turn _turn = self.turns.apart()
        return tlb_gpm(self.t, guest_physical_address("gpa", gpa))

    def gpm_fill(self, gpa, value):
        """Caches a guest-physical mapping."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = guest_physical_address("gpa", gpa)
        tlb_gpm_fill(self.t, at, _entry(value))

    def psc(self, la, above=6):
        """(level, value) of the lowest paging-structure entry cached for `la`, below level `above`, 2..6; (0, 0):
        none."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = linear_address("la", la)
        cdef int level = 0
        cdef uint64_t value = tlb_psc(self.t, at, within("above", above, 2, 6), &level)
        return level, value

    def psc_fill(self, la, level, value):
        """Caches a paging-structure entry of level 2 (PDE) to 5 (PML5E)."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = linear_address("la", la)
        cdef int of = within("level", level, 2, 5)
        tlb_psc_fill(self.t, at, of, _table(value))

    def epsc(self, gpa, above=6):
        """As :meth:`psc`, for the EPT tables and a guest-physical address."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = guest_physical_address("gpa", gpa)
        cdef int level = 0
        cdef uint64_t value = tlb_epsc(self.t, at, within("above", above, 2, 6), &level)
        return level, value

    def epsc_fill(self, gpa, level, value):
        """Caches an EPT paging-structure entry of level 2 to 5."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = guest_physical_address("gpa", gpa)
        cdef int of = within("level", level, 2, 5)
        tlb_epsc_fill(self.t, at, of, _table(value))

    # ---- invalidations: number of entries invalidated -----------------------------------------------------------

    def mov_cr3(self, vpid=0, pcid=0):
        """MOV to CR3 with source bit 63 clear."""
        cdef Turn _turn = self.turns.apart()
        return inv_mov_cr3(self.t, _vpid(vpid), _pcid(pcid))

    def cr0_pg(self, vpid=0):
        """CR0.PG 1 -> 0."""
        cdef Turn _turn = self.turns.apart()
        return inv_cr0_pg(self.t, _vpid(vpid))

    def cr4_all(self, vpid=0):
        """CR4.PGE changes, or PCIDE 1 -> 0."""
        cdef Turn _turn = self.turns.apart()
        return inv_cr4_all(self.t, _vpid(vpid))

    def cr4_pcid(self, vpid=0, pcid=0):
        """CR4.PAE changes, or SMEP 0 -> 1."""
        cdef Turn _turn = self.turns.apart()
        return inv_cr4_pcid(self.t, _vpid(vpid), _pcid(pcid))

    def invlpg(self, la, vpid=0, pcid=0):
        """INVLPG."""
        cdef Turn _turn = self.turns.apart()
        return inv_invlpg(self.t, _vpid(vpid), _pcid(pcid), linear_address("la", la))

    def page_fault(self, la, vpid=0, pcid=0):
        """#PF caused by `la`."""
        cdef Turn _turn = self.turns.apart()
        return inv_page_fault(self.t, _vpid(vpid), _pcid(pcid), linear_address("la", la))

    def invpcid(self, type, vpid=0, pcid=0, la=0):
        """INVPCID type 0..3."""
        cdef Turn _turn = self.turns.apart()
        cdef int of = within("type", type, 0, 3)
        return inv_invpcid(self.t, of, _vpid(vpid), _pcid(pcid), linear_address("la", la))

    def transition(self, vpid_enabled=False):
        """VM entry or VM exit."""
        cdef Turn _turn = self.turns.apart()
        return inv_transition(self.t, flag("vpid_enabled", vpid_enabled))

    def invvpid(self, type, vpid=0, la=0):
        """INVVPID type 0..3."""
        cdef Turn _turn = self.turns.apart()
        cdef int of = within("type", type, 0, 3)
        return inv_invvpid(self.t, of, _vpid(vpid), linear_address("la", la))

    def invept(self, type, eptrta=0):
        """INVEPT type 1..2."""
        cdef Turn _turn = self.turns.apart()
        cdef int of = within("type", type, 1, 2)
        return inv_invept(self.t, of, page_address("eptrta", eptrta))

    def vmfunc(self, vpid_enabled=False):
        """VMFUNC 0, EPTP switch."""
        cdef Turn _turn = self.turns.apart()
        return inv_vmfunc(self.t, flag("vpid_enabled", vpid_enabled))

    def ept_violation(self, gpa, eptrta, *, vpid=0, pcid=0, la=None):
        """EPT violation at `gpa`, which translates `la` (None: it is the address of a table)."""
        cdef Turn _turn = self.turns.apart()
        cdef uint64_t at = guest_physical_address("gpa", gpa), of = 0 if la is None else linear_address("la", la)
        return inv_ept_violation(self.t, _vpid(vpid), _pcid(pcid), _root(eptrta), at, la is not None, of)

    def invlpga(self, la, asid=0):
        """INVLPGA: the page of `la` in every PCID of an ASID, global mappings too."""
        cdef Turn _turn = self.turns.apart()
        return inv_invlpga(self.t, within("asid", asid, 0, 0xFFFF), linear_address("la", la))

    def tlb_control(self, control, asid=0):
        """VMRUN with this TLB_CONTROL: 0 nothing, 1 all, 3 an ASID, 7 it but global mappings."""
        cdef Turn _turn = self.turns.apart()
        cdef int of = within("control", control, 0, 7)
        if of not in (0, 1, 3, 7):
            raise StateError(f"control={of}: TLB_CONTROL is 0, 1, 3 or 7")
        return inv_tlb_control(self.t, of, within("asid", asid, 0, 0xFFFF))

    def reset(self):
        """Everything."""
        cdef Turn _turn = self.turns.apart()
        return inv_reset(self.t)

    # ---- reading out --------------------------------------------------------------------------------------------

    @property
    def contexts(self):
        """Number of contexts with live entries."""
        cdef Turn _turn = self.turns.take()
        return self.t.n_live

    def live(self):
        """dict of unit -> number of entries that can match."""
        cdef Turn _turn = self.turns.take()
        return live_of(self.t)

    def entries(self):
        """All live entries: list of (unit, kind, VPID, PCID, EPT root or None, address, size, value).

        A set's entries follow each other, under LRU the most recent first. Of what hyperthreads share, its own.
        """
        cdef Turn _turn = self.turns.take()
        return entries_of(self.t)

    def counters(self):
        """Everything counted so far.

        dict of unit -> {lookups, hits: {size: n}, misses, fills, evictions}, and "flushes": {cause: operations},
        "invalidated": {cause: {unit: entries}}, "refill_misses": {cause: walks that redo what the flush took},
        "survivals": entries that lived through VM entries and exits under VPID. Of a hyperthread also "displaced":
        {unit: its evictions of other hyperthreads' entries}, "sibling_misses": walks for what others had displaced in
        the second level.
        """
        cdef Turn _turn = self.turns.take()
        return counters_of(self.t)

    @property
    def omit(self):
        """Causes, out of CAUSE_NAMES, whose invalidations are counted and do nothing: a set of str."""
        cdef Turn _turn = self.turns.take()
        return {name for i, name in enumerate(CAUSE_NAMES) if self.t.omit >> i & 1}

    @omit.setter
    def omit(self, causes):
        cdef Turn _turn = self.turns.take()
        cdef uint32_t omit = 0
        for cause in many("omit", causes):
            omit |= 1U << <int> choice("a cause", cause, _CAUSES, ConfigError)
        self.t.omit = omit | self.t.omit & (LOST_SOME | EXTENDED)

    def _walk_at_length(self):
        # from now on no walk is quick (paging/quick_walk.pxd): results are the same, which a test wants to see
        self.t.quick_on = False

    def _quick_walks(self):
        return self.t.quick_done

    def _probes(self):
        # sets, entries and contexts that invalidations have looked at: what they cost, for tests
        return self.t.probes

    def reset_counters(self):
        """All counters to 0; the entries stay."""
        cdef Turn _turn = self.turns.apart()
        memset(&self.t.c, 0, sizeof(self.t.c))
        reset_extensions(self.t)

    def simulate(self, va, access="r"):
        """Looks up each address, of 4K pages mapped to themselves, and fills on a miss of both levels.

        :param va: uint64 linear addresses, C-contiguous.
        :returns: dict of int: accesses, l1_hits, l2_hits, misses.
        :raises StateError: an array of another kind, an address that is not canonical (bits 63:57 equal bit 56); then
            none is looked up.
        """
        cdef const uint64_t[::1] at = words_in("va", va)
        cdef int acc = _access(access)
        cdef TlbPort *p = &self.t.port[acc]
        cdef Py_ssize_t i, n = at.shape[0]
        cdef uint64_t j, la, end = 0, done = 0, l1_misses = 0, misses = 0
        cdef Held first
        cdef uint64_t found, value
        cdef Pace pace
        self.turns.begin("TLB.simulate()")
        aim_at_pages(self.t)
        try:
            with nogil:
                pace_begin(&pace)
                i = 0
                while i < n:
                    end = min(<uint64_t> i + (1 << 20), <uint64_t> n)
                    i = not_linear(at, i, end)
                    if i < <Py_ssize_t> end or i < n and self.turns.between(&pace):
                        break
            self.turns.signals()
            if i < n:
                raise StateError(f"va[{i}]={at[i]:#x} is no linear address: bits 63:57 must equal bit 56")
            with nogil:
                pace_begin(&pace)
                while done < <uint64_t> n:
                    end = min(done + pace.chunk, <uint64_t> n)
                    held_begin(&first, self.t, acc, False)
                    for j in range(done, end):
                        la = at[j]
                        if held_first(&first, la):
                            continue
                        found = held_second(self.t, &first, la)
                        if not found and tlb_l1(self.t, acc, la):
                            continue
                        l1_misses += 1
                        if not found:
                            found = tlb_l2(self.t, acc, la)
                            held_begin(&first, self.t, acc, False)
                        if not found or found == MISSED:
                            misses += 1
                            value = tlb_value(la, 0, 0, F_U | F_R | F_W | F_EW | F_X | F_D | F_K)
                            if not found or not held_fill(self.t, &first, la, value):
                                fill_walked(self.t, acc, la, value, False)
                                held_begin(&first, self.t, acc, False)
                    self.t.c.lookups[p.l1.id] += end - done
                    done = end
                    if done < <uint64_t> n and self.turns.between(&pace):
                        break
            self.turns.signals()
        finally:
            self.turns.end()
        return {"accesses": n, "l1_hits": n - l1_misses, "l2_hits": l1_misses - misses, "misses": misses}
