"""The tagged TLB of one physical CPU, for Python."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X, Walk
from fastmmu.tlb.entries cimport (
    CAUSES, CTX_LIVE, EPSC, F_D, F_EW, F_K, F_R, F_U, F_W, F_X, GPM, KINDS, L1D, L1I, L1S, L2, L2I, NO_EPT, PSC,
    TlbArray, TlbContext, TlbPort, UNITS, set_at, tlb_switch
)
from fastmmu.tlb.invalidate cimport (
    inv_cr0_pg, inv_cr4_all, inv_cr4_pcid, inv_ept_violation, inv_invept, inv_invlpg, inv_invpcid, inv_invvpid,
    inv_mov_cr3, inv_page_fault, inv_reset, inv_transition, inv_vmfunc
)
from fastmmu.tlb.lookup cimport (
    tlb_add, tlb_epsc, tlb_epsc_fill, tlb_fill, tlb_free, tlb_gpm, tlb_gpm_fill, tlb_l1, tlb_l2, tlb_new, tlb_psc,
    tlb_psc_fill, tlb_ready, tlb_refill, tlb_value, tlb_value_of_walk
)
from fastmmu.tlb.replacement cimport LRU, TREE_PLRU, way_at
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError
from fastmmu.tlb.geometry import PAGES, REPLACEMENTS, TABLES, Array
from fastmmu.tlb.geometry import geometry as make_geometry

__all__ = ["CAUSE_NAMES", "KIND_NAMES", "TLB", "UNIT_NAMES"]

UNIT_NAMES = ("l1i", "l1d", "l1s", "l2i", "l2", "gpm", "psc", "epsc")
KIND_NAMES = ("local", "global", "psc", "gpm", "epsc")
CAUSE_NAMES = (
    "cr3", "cr0", "cr4", "invlpg", "invpcid_0", "invpcid_1", "invpcid_2", "invpcid_3", "invvpid_0", "invvpid_1",
    "invvpid_2", "invvpid_3", "invept_1", "invept_2", "transition", "vmfunc", "page_fault", "ept_violation", "rewalk",
    "contexts", "reset",
)
assert len(UNIT_NAMES) == UNITS and len(KIND_NAMES) == KINDS and len(CAUSE_NAMES) == CAUSES

_REPLACEMENT = {"lru": LRU, "plru": TREE_PLRU}
assert _REPLACEMENT.keys() == REPLACEMENTS.keys()

_ACCESS = {"r": ACC_R, "w": ACC_W, "rw": ACC_RW, "x": ACC_X}


cdef int _access(object access) except -1:
    try:
        return _ACCESS[access]
    except (KeyError, TypeError):
        raise StateError(f"access {access!r}; choose from r, w, rw, x") from None


cdef uint64_t _root(object eptrta) except? 0:
    if eptrta is None:
        return NO_EPT
    if not 0 <= eptrta < 1 << 52 or eptrta & 0xFFF:
        raise StateError(f"EPT root {eptrta:#x} is no page address below 2**52; give EPTP bits 51:12")
    return eptrta


cdef uint32_t _number(str name, object value, uint32_t end) except? 0:
    if not 0 <= value < end:
        raise StateError(f"{name} {value} is outside 0..{end - 1}")
    return value


cdef class TLB:
    """All caches of translations of one physical CPU: first and second level, guest-physical mappings and
    paging-structure caches, tagged by VPID, PCID and EPT root.

    The CPU has one context in force, see :meth:`switch`; lookups and fills are its. Invalidations name theirs.
    What the values of entries mean: the head of tlb/lookup.pxd.

    :param geometry: a preset's name or a :class:`fastmmu.tlb.geometry.Geometry`.
    :param max_contexts: how many contexts can have entries at a time, 8..65534; when they run out, one is flushed.
    :raises ConfigError: an unknown preset or an impossible geometry.
    """

    def __cinit__(self, geometry="skylake", *, max_contexts=65534):
        cdef int index
        if not 8 <= max_contexts <= 65534:
            raise ConfigError(f"max_contexts {max_contexts} is outside 8..65534")
        g = self.geometry = make_geometry(geometry)
        self.t = tlb_new(max_contexts)
        if self.t == NULL:
            raise OutOfMemoryError("no memory for the contexts of a TLB; give fewer by max_contexts")
        first, second = g.replacement
        gpm = (g.gpm,) if isinstance(g.gpm, Array) else ()
        for unit, arrays, policy, names in (
            (L1I, g.l1i, first, PAGES), (L1D, g.l1d, first, PAGES), (L1S, g.l1s, first, PAGES),
            (L2I, g.l2i, second, PAGES), (L2, g.l2, second, PAGES), (GPM, gpm, "lru", PAGES),
            (PSC, g.psc, "lru", TABLES), (EPSC, g.epsc, "lru", TABLES),
        ):
            for array in arrays:
                classes = [names.index(size) for size in array.sizes]
                index = tlb_add(self.t, unit, sum(1 << c for c in classes), array.sets, array.ways,
                                _REPLACEMENT[policy], g.unbounded)
                if index < 0:
                    raise OutOfMemoryError(f"no memory for the TLB array {array}; give a smaller one")
                for c, quota in zip(classes, array.quota or ()):
                    self.t.array[index].quota[c] = quota
        self.t.l2_fractures = g.smash
        tlb_ready(self.t, g.l2_fetches, g.gpm == "shared")

    def __dealloc__(self):
        tlb_free(self.t)

    # ---- the context in force, lookups, fills -----------------------------------------------------------------

    def switch(self, vpid=0, pcid=0, eptrta=None):
        """Puts a context in force; invalidates nothing. `eptrta`: EPTP bits 51:12, None: EPT is not in use."""
        tlb_switch(self.t, _number("VPID", vpid, 1 << 16), _number("PCID", pcid, 1 << 12), _root(eptrta))

    @staticmethod
    def value(uint64_t pa, size="4k", *, page=None, flags="urwexd", int key=0, int memory_type=0):
        """The value of an entry (uint64).

        :param pa: any physical address in the page. :param size: "4k", "2m" or "1g", the smaller of guest and EPT page.
        :param page: size of the guest's page ("4m" too); default: `size`.
        :param flags: of u user, s supervisor, r EPT read, w guest write, e EPT write, x fetch, d dirty, g global.
        """
        cdef uint64_t bits = 0
        for flag in flags:
            bits |= <uint64_t> 1 << "usrwexdg".index(flag)
        page = (*PAGES, "4m").index(size if page is None else page)
        if key == 0:
            bits |= F_K
        return tlb_value(pa, PAGES.index(size), page, bits) | <uint64_t> key << 52 | <uint64_t> memory_type << 56

    @staticmethod
    def value_of_walk(uint64_t pa, *, int guest_shift=12, int ept_shift=0, us=True, rw=True, xd=False,
                      global_page=False, dirty=True, int ept_rights=7, ept_dirty=True, int key=0, int memory_type=0,
                      mbec=False):
        """The value under which the outcome of a walk is cached (SDM vol. 3, "Creating and Using
        Cached Translation Information"; tlb.md §1.1, R3 and R4).

        :param guest_shift, ept_shift: log2 of the page sizes; 0: paging off, no EPT. :param us, rw, xd, global_page,
            dirty: of the guest's entries, ANDed or ORed. :param ept_rights: R 1, W 2, X 4, XU 8, ANDed.
        """
        cdef Walk w
        memset(&w, 0, sizeof(w))
        w.pa, w.guest_shift, w.ept_shift = pa, guest_shift, ept_shift
        w.us, w.rw, w.xd, w.global_page, w.dirty = us, rw, xd, global_page, dirty
        w.ept_rights, w.ept_dirty, w.pkey, w.ept_mt = ept_rights, ept_dirty, key, memory_type
        return tlb_value_of_walk(&w, mbec)

    def lookup(self, uint64_t la, access="r"):
        """(level, value): 1 first level, 2 second level, which refills the first; (0, 0): a miss of both."""
        cdef int acc = _access(access)
        cdef uint64_t value = tlb_l1(self.t, acc, la)
        self.t.c.lookups[self.t.port[acc].l1.id] += 1
        if value:
            return 1, value
        value = tlb_l2(self.t, acc, la)
        return (2 if value else 0), value

    def fill(self, uint64_t la, uint64_t value, access="r"):
        """Caches what a walk found, in both levels; the value as the first level has it."""
        return tlb_fill(self.t, _access(access), la, value)

    def refill(self, uint64_t la, uint64_t value, access="r"):
        """As :meth:`fill`, after dropping what `la` hits now: its rights or dirty flag did not suffice."""
        return tlb_refill(self.t, _access(access), la, value)

    def gpm(self, uint64_t gpa):
        """Value of the guest-physical mapping of `gpa`, or 0."""
        return tlb_gpm(self.t, gpa)

    def gpm_fill(self, uint64_t gpa, uint64_t value):
        """Caches a guest-physical mapping."""
        tlb_gpm_fill(self.t, gpa, value)

    def psc(self, uint64_t la, int above=6):
        """(level, value) of the lowest paging-structure entry cached for `la`, below level `above`; (0, 0): none."""
        cdef int level = 0
        cdef uint64_t value = tlb_psc(self.t, la, above, &level)
        return level, value

    def psc_fill(self, uint64_t la, int level, uint64_t value):
        """Caches a paging-structure entry of level 2 (PDE) to 5 (PML5E)."""
        tlb_psc_fill(self.t, la, level, value)

    def epsc(self, uint64_t gpa, int above=6):
        """As :meth:`psc`, for the EPT tables and a guest-physical address."""
        cdef int level = 0
        cdef uint64_t value = tlb_epsc(self.t, gpa, above, &level)
        return level, value

    def epsc_fill(self, uint64_t gpa, int level, uint64_t value):
        """Caches an EPT paging-structure entry of level 2 to 5."""
        tlb_epsc_fill(self.t, gpa, level, value)

    # ---- invalidations: number of entries invalidated -----------------------------------------------------------

    def mov_cr3(self, vpid=0, pcid=0):
        """MOV to CR3 with source bit 63 clear."""
        return inv_mov_cr3(self.t, vpid, pcid)

    def cr0_pg(self, vpid=0):
        """CR0.PG 1 -> 0."""
        return inv_cr0_pg(self.t, vpid)

    def cr4_all(self, vpid=0):
        """CR4.PGE changes, or PCIDE 1 -> 0."""
        return inv_cr4_all(self.t, vpid)

    def cr4_pcid(self, vpid=0, pcid=0):
        """CR4.PAE changes, or SMEP 0 -> 1."""
        return inv_cr4_pcid(self.t, vpid, pcid)

    def invlpg(self, uint64_t la, vpid=0, pcid=0):
        """INVLPG."""
        return inv_invlpg(self.t, vpid, pcid, la)

    def page_fault(self, uint64_t la, vpid=0, pcid=0):
        """#PF caused by `la`."""
        return inv_page_fault(self.t, vpid, pcid, la)

    def invpcid(self, int type, vpid=0, pcid=0, uint64_t la=0):
        """INVPCID type 0..3."""
        return inv_invpcid(self.t, _number("INVPCID type", type, 4), vpid, pcid, la)

    def transition(self, bint vpid_enabled=False):
        """VM entry or VM exit."""
        return inv_transition(self.t, vpid_enabled)

    def invvpid(self, int type, vpid=0, uint64_t la=0):
        """INVVPID type 0..3."""
        return inv_invvpid(self.t, _number("INVVPID type", type, 4), vpid, la)

    def invept(self, int type, eptrta=0):
        """INVEPT type 1..2."""
        return inv_invept(self.t, 1 + _number("INVEPT type - 1:", type - 1, 2), _root(eptrta))

    def vmfunc(self, bint vpid_enabled=False):
        """VMFUNC 0, EPTP switch."""
        return inv_vmfunc(self.t, vpid_enabled)

    def ept_violation(self, uint64_t gpa, eptrta, *, vpid=0, pcid=0, la=None):
        """EPT violation at `gpa`, which translates `la` (None: it is the address of a table)."""
        return inv_ept_violation(self.t, vpid, pcid, _root(eptrta), gpa, la is not None, 0 if la is None else la)

    def reset(self):
        """Everything."""
        return inv_reset(self.t)

    # ---- reading out --------------------------------------------------------------------------------------------

    @property
    def contexts(self):
        """Number of contexts with live entries."""
        return self.t.n_live

    def live(self):
        """dict of unit -> number of entries that can match."""
        return {UNIT_NAMES[u]: sum([self.t.unit[u].live[c] for c in range(4)]) for u in range(UNITS)}

    def entries(self):
        """All live entries: list of (unit, kind, VPID, PCID, EPT root or None, address, size, value).

        A set's entries follow each other, under LRU the most recent first.
        """
        cdef TlbArray *a
        cdef TlbContext *x
        cdef uint64_t key
        cdef uint32_t i, s, w, place
        found = []
        for i in range(self.t.arrays):
            a = &self.t.array[i]
            names = TABLES if a.unit >= PSC else PAGES
            for s in range(a.sets):
                for place in range(a.ways):
                    w = way_at(a, set_at(a, s), place)
                    key = set_at(a, s).way[w]
                    if self.t.state[key >> 2 & 0xFFFF] == CTX_LIVE:
                        x = &self.t.ctx[key >> 2 & 0xFFFF]
                        root = None if x.eptrta == NO_EPT else x.eptrta
                        found.append((UNIT_NAMES[a.unit], KIND_NAMES[x.kind], x.vpid, x.pcid, root, key >> 18 << 12,
                                      names[key & 3], set_at(a, s).way[a.pad + w]))
        return found

    def counters(self):
        """Everything counted so far.

        dict of unit -> {lookups, hits: {size: n}, misses, fills, evictions}, and "flushes": {cause: operations},
        "invalidated": {cause: {unit: entries}}, "refill_misses": {cause: walks that redo what the flush took},
        "survivals": entries that lived through VM entries and exits under VPID.
        """
        c = &self.t.c
        out = {}
        for u, name in enumerate(UNIT_NAMES):
            sizes = TABLES if u >= PSC else PAGES
            hits = {size: c.hits[u][i] for i, size in enumerate(sizes)}
            if u <= L1S:
                hits["4k"] = c.lookups[u] - c.misses[u] - hits["2m"] - hits["1g"]
            out[name] = {"lookups": c.lookups[u], "hits": hits, "misses": c.misses[u], "fills": c.fills[u],
                         "evictions": c.evictions[u]}
        causes = [i for i in range(CAUSES) if c.flushes[i] or any([c.invalidated[i][u] for u in range(UNITS)])]
        out["flushes"] = {CAUSE_NAMES[i]: c.flushes[i] for i in causes}
        out["invalidated"] = {
            CAUSE_NAMES[i]: {name: c.invalidated[i][u] for u, name in enumerate(UNIT_NAMES) if c.invalidated[i][u]}
            for i in causes
        }
        out["refill_misses"] = {CAUSE_NAMES[i]: c.refill_misses[i] for i in range(CAUSES) if c.refill_misses[i]}
        out["survivals"] = c.survivals
        return out

    @property
    def omit(self):
        """Causes, out of CAUSE_NAMES, whose invalidations are counted and do nothing: a set of str."""
        return {name for i, name in enumerate(CAUSE_NAMES) if self.t.omit >> i & 1}

    @omit.setter
    def omit(self, causes):
        unknown = set(causes) - set(CAUSE_NAMES)
        if unknown:
            raise ConfigError(f"{sorted(unknown)[0]!r} invalidates nothing; choose from {', '.join(CAUSE_NAMES)}")
        self.t.omit = sum(1 << i for i, name in enumerate(CAUSE_NAMES) if name in causes)

    def reset_counters(self):
        """All counters to 0; the entries stay."""
        memset(&self.t.c, 0, sizeof(self.t.c))

    def simulate(self, const uint64_t[::1] va, access="r"):
        """Looks up each address, of 4K pages mapped to themselves, and fills on a miss of both levels.

        :param va: uint64 linear addresses, C-contiguous.
        :returns: dict of int: accesses, l1_hits, l2_hits, misses.
        """
        cdef int acc = _access(access)
        cdef TlbPort *p = &self.t.port[acc]
        cdef Py_ssize_t i, n = va.shape[0]
        cdef uint64_t l1_misses = 0, misses = 0, la
        with nogil:
            for i in range(n):
                la = va[i]
                if tlb_l1(self.t, acc, la) == 0:
                    l1_misses += 1
                    if tlb_l2(self.t, acc, la) == 0:
                        misses += 1
                        tlb_fill(self.t, acc, la, tlb_value(la, 0, 0, F_U | F_R | F_W | F_EW | F_X | F_D | F_K))
        self.t.c.lookups[p.l1.id] += n
        return {"accesses": n, "l1_hits": n - l1_misses, "l2_hits": l1_misses - misses, "misses": misses}
