"""One walk at a time, with every memory reference that it makes."""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport ONES, P
from fastmmu.arch.memtype cimport effective_type
from fastmmu.arch.types cimport (
    FAULT_APIC, FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_GP, FAULT_NONE, FAULT_PF, FAULT_PML_FULL,
    FAULT_SPP, MODE_4, MODE_PAE, STEP_DATA, STEP_GUEST, Ept, Mem, Paging, Step, Steps, Walk,
)
from fastmmu.paging.ept cimport (
    NEED_R, NEED_W, QUAL_GLA, QUAL_TRANSLATED, EptLeaf, apic_access, ept_facts, ept_walk, need_of, on_apic_page, step,
)
from fastmmu.paging.guest cimport guest_walk
from fastmmu.paging.memory cimport PhysicalMemory, mem_holds, mem_read64
from fastmmu.paging.state cimport Eptp, GuestState, access_code, as_eptp
from fastmmu.paging.walk_caches cimport Cached
from fastmmu.tlb.lookup cimport Tlb
from fastmmu.tlb.tlb cimport TLB
from fastmmu.arch.memtype import MemoryType
from fastmmu.dtypes import STEP_DTYPE, Fault
from fastmmu.errors import BusError, StateError
from fastmmu.exits import Qualification

cdef enum:
    PDPT = 0xFFFFFFE0           # CR3[31:5]


cdef int walk_silent(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w) noexcept nogil:
    if e == NULL:
        return guest_walk(m, g, NULL, NULL, la, acc, w, NULL)
    return guest_walk(m, g, e, NULL, la, acc, w, NULL)


cdef int with_caches(Mem *m, const Paging *g, const Ept *e, Cached *c, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil:
    if e == NULL:
        return guest_walk(m, g, NULL, c, la, acc, w, steps)
    return guest_walk(m, g, e, c, la, acc, w, steps)


cdef int walk_cached(Mem *m, const Paging *g, const Ept *e, Tlb *t, uint64_t la, int acc, Walk *w,
                     Steps *steps) noexcept nogil:
    # A walk that fails after it used what was cached is made again from memory (tlb.md §1.1). Its references count
    # where it succeeds; a processor that fails at once has made those of the first walk alone.
    cdef Cached c
    cdef uint32_t guest_refs, ept_refs, ad_writes
    c.tlb = t
    c.look = True
    c.used = False
    if with_caches(m, g, e, &c, la, acc, w, steps) == FAULT_NONE or not c.used:
        return w.fault
    guest_refs = w.guest_refs
    ept_refs = w.ept_refs
    ad_writes = w.ad_writes
    c.look = False
    if with_caches(m, g, e, &c, la, acc, w, steps):
        w.guest_refs = w.ept_refs = 0
    w.guest_refs += guest_refs
    w.ept_refs += ept_refs
    w.ad_writes += ad_writes
    return w.fault


cdef int walk_steps(Mem *m, const Paging *g, const Ept *e, uint64_t la, int acc, Walk *w, Steps *steps) noexcept nogil:
    return guest_walk(m, g, e, NULL, la, acc, w, steps)


cdef int load_pdptes(Mem *m, Paging *g, const Ept *e, Walk *w, Steps *steps) noexcept nogil:
    # the four PAE PDPTE registers from CR3[31:5], as MOV to CR3 loads them (paging.md §3.2)
    cdef EptLeaf leaf
    cdef uint64_t gpa = g.cr3 & PDPT, hpa = gpa
    cdef uint64_t reserved = 0x1E6 | ~(g.frame | 0xFFF)
    cdef uint64_t loaded[4]
    cdef int i, fault
    memset(w, 0, sizeof(Walk))
    if e != NULL:
        fault = ept_walk(m, e, NULL, gpa, NEED_R, True, 0, 3, &leaf, w, steps)
        if fault:
            return fault
        hpa = leaf.hpa
        if on_apic_page(e, hpa):
            return apic_access(w, gpa, hpa)
    w.gpa = gpa
    for i in range(4):
        if not mem_holds(m, hpa + 8 * i, 8):
            return FAULT_BUS
        loaded[i] = mem_read64(m, hpa + 8 * i)
        if steps != NULL:
            step(steps, STEP_GUEST, 3, 3, hpa + 8 * i, gpa + 8 * i, loaded[i])
    for i in range(4):
        if loaded[i] & P and loaded[i] & reserved:
            return FAULT_GP
    memcpy(g.pdpte, loaded, sizeof(loaded))
    return FAULT_NONE


cdef class WalkResult:
    """What one access came to, and each memory reference on the way.

    ``.pa``: host-physical address (int; all ones where it did not translate). ``.fault``: a
    :class:`~fastmmu.dtypes.Fault`. ``.steps``: record array of dtype ``STEP_DTYPE`` in the order of the references.
    ``.gpa``: guest-physical address of the data, or of the reference that failed.
    """

    @property
    def pa(self):
        return self.walk.pa

    @property
    def gpa(self):
        return self.walk.gpa

    @property
    def fault(self):
        return Fault(self.walk.fault)

    @property
    def error_code(self):
        """#PF error code (paging.md §5), None for any other outcome."""
        return self.walk.error_code if self.walk.fault == FAULT_PF else None

    @property
    def cr2(self):
        """CR2 as the #PF leaves it: the linear address; None for any other outcome."""
        return self.la if self.walk.fault == FAULT_PF else None

    @property
    def qualification(self):
        """Exit qualification of an EPT violation (ept.md §4.1), None for any other outcome."""
        return Qualification(self.walk.qual) if self.walk.fault == FAULT_EPT_VIOLATION else None

    @property
    def exit_qualification(self):
        """Exit qualification (int) of any outcome that is a VM exit, None for the others."""
        return self.walk.qual if self.walk.fault in (
            FAULT_EPT_VIOLATION, FAULT_EPT_MISCONFIG, FAULT_PML_FULL, FAULT_SPP, FAULT_APIC) else None

    @property
    def gla(self):
        """Guest-linear address of an EPT violation, where its qualification says it is valid; else None."""
        return self.la if self.walk.fault == FAULT_EPT_VIOLATION and self.walk.qual & QUAL_GLA else None

    @property
    def memory_type(self):
        """Effective :class:`MemoryType` of the access (paging.md §8, ept.md §8); None where it did not translate."""
        return None if self.walk.fault else MemoryType(self.mt)

    @property
    def ept_memory_type(self):
        """(type, ignore-PAT bit) of the EPT leaf; None without EPT or where it did not translate."""
        if self.walk.fault or not self.walk.ept_shift:
            return None
        return MemoryType(self.walk.ept_mt), bool(self.walk.ept_ipat)

    @property
    def suppress_ve(self):
        """Bit 63 of the EPT entry that decided: with it, an EPT violation stays an exit and is no #VE (ept.md §9)."""
        return bool(self.walk.ept_entry >> 63)

    @property
    def page_size(self):
        """Bytes of the page by the guest's tables; None where it did not translate or paging is off."""
        return 1 << self.walk.guest_shift if self.walk.guest_shift and not self.walk.fault else None

    @property
    def ept_page_size(self):
        """Bytes of the page by the EPT; None without EPT or where it did not translate."""
        return 1 << self.walk.ept_shift if self.walk.ept_shift and not self.walk.fault else None

    @property
    def guest_refs(self):
        """Guest paging-structure entries read."""
        return self.walk.guest_refs

    @property
    def ept_refs(self):
        """EPT entries read."""
        return self.walk.ept_refs

    @property
    def rights(self):
        """(user, writable, execute-disable) of the linear address by the guest's tables."""
        return bool(self.walk.us), bool(self.walk.rw), bool(self.walk.xd)

    def __repr__(self):
        if self.walk.fault == FAULT_NONE:
            return f"<walk {self.la:#x} -> {self.walk.pa:#x}, {len(self.steps)} steps>"
        return f"<walk {self.la:#x}: {self.fault.name}, {len(self.steps)} steps>"


def walk(PhysicalMemory mem not None, GuestState state not None, va, *, access="r", eptp=None, set_ad=False,
         TLB tlb=None):
    """Translate one linear address and report every memory reference.

    :param mem: host physical memory. :param state: registers. :param va: linear address: an integer of 64 bits, or the
        negative number that such a one sign-extends.
    :param access: "r", "w", "rw" (read-modify-write) or "x" (fetch).
    :param eptp: EPT pointer (int or :class:`Eptp`); None = no EPT.
    :param set_ad: False: a query, with the outcome that the access would have and memory left as it is. True: an
        access, which sets accessed and dirty flags in memory (paging.md §6, ept.md §7).
    :param tlb: a :class:`~fastmmu.tlb.tlb.TLB` whose paging-structure caches and guest-physical mappings the walk uses
        and fills, in the context that it has in force; needs set_ad=True. None: no caches.
    :returns: :class:`WalkResult` with ``.pa``, ``.fault``, ``.steps``.
    :raises StateError: an address, access or EPTP that is none. :raises BusError: a root table outside memory.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef Steps steps
    cdef const Ept *e = NULL
    cdef int acc = access_code(access)
    cdef uint64_t la = linear_address(va)
    cdef int fault = prepare(mem, state, eptp, set_ad, True, &paging, &ept, &result.walk)
    cdef Tlb *caches = NULL
    if tlb is not None:
        if not set_ad:
            raise StateError("a walk that fills caches is an access: pass set_ad=True with tlb=")
        caches = tlb.t
    if eptp is not None:
        e = &ept
    if paging.mode < MODE_4:
        la &= 0xFFFFFFFFU
    steps.n = 0
    if not fault:
        with nogil:
            if caches != NULL:
                walk_cached(&mem.mem, &paging, e, caches, la, acc, &result.walk, &steps)
            else:
                walk_steps(&mem.mem, &paging, e, la, acc, &result.walk, &steps)
    if not result.walk.fault:
        result.mt = effective_type(&paging, &state.mtrrs.state, &result.walk, e != NULL)
    return finish(result, la, access, &steps)


cdef finish(WalkResult result, uint64_t la, access, const Steps *steps):
    result.la = int(la)
    result.access = access
    result.steps = np.frombuffer((<const char *> steps.step)[:steps.n * sizeof(Step)],
                                 dtype=STEP_DTYPE).view(np.recarray)
    return result


def walk_ept(PhysicalMemory mem not None, eptp, gpa, *, access="r", gla=None, paging_structure=False, user=True,
             writable=True, nx=False, GuestState state=None, set_ad=False):
    """Translate one guest-physical address by the EPT alone.

    :param access: "r", "w", "rw" or "x"; of a paging structure "w" is an update of its A or D flag.
    :param gla: linear address that the reference serves; None: none (a PDPTE load), qualification bit 7 is 0.
    :param paging_structure: the reference is to a guest paging structure, not to the data (bit 8 is 0).
    :param user, writable, nx: rights of the linear address by the guest's tables, for qualification bits 9..11 and
        for mode-based execute control. :param state: registers, for the memory type.
    :returns: :class:`WalkResult`; see :func:`walk` for `set_ad` and errors.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef Steps steps
    cdef EptLeaf leaf
    cdef int acc = access_code(access), fault
    cdef uint64_t need = need_of(acc)
    cdef uint64_t target, bits = 0
    cdef bint us = user
    if isinstance(gpa, bool) or not isinstance(gpa, (int, np.integer)) or not 0 <= gpa < 1 << 64:
        raise StateError(f"a guest-physical address is a positive integer of 64 bits, not {gpa!r}")
    target = <uint64_t> int(gpa)
    state = GuestState(cr0=0x10) if state is None else state
    prepare(mem, state.replace(cr0=state.cr0 & ~(1 << 31)), eptp, set_ad, True, &paging, &ept, &result.walk)
    if gla is not None:
        bits = QUAL_GLA
        if not paging_structure:
            bits |= QUAL_TRANSLATED
            if ept.adv_info:
                bits |= bool(user) << 9 | bool(writable) << 10 | bool(nx) << 11
        if paging_structure:
            need |= NEED_R
            if ept.ad:
                need |= NEED_W
    steps.n = 0
    memset(&result.walk, 0, sizeof(Walk))
    with nogil:
        fault = ept_walk(&mem.mem, &ept, NULL, target, need, us, bits, 0, &leaf, &result.walk, &steps)
    result.walk.fault = fault
    result.walk.pa = ONES
    if not fault:
        result.walk.pa = leaf.hpa
        ept_facts(&result.walk, &leaf)
        step(&steps, STEP_DATA, 0, 0, leaf.hpa, target, 0)
        result.mt = effective_type(&paging, &state.mtrrs.state, &result.walk, True)
    return finish(result, 0 if gla is None else linear_address(gla), access, &steps)


def load_pdpte_registers(PhysicalMemory mem not None, GuestState state not None, *, eptp=None, set_ad=False):
    """The PAE PDPTE registers as MOV to CR3 loads them from memory (paging.md §3.2).

    :param set_ad: under an EPT with accessed flags: False, a query; True, the load sets them, and never a dirty flag.
    :returns: the state with its ``pdptes`` set, or the :class:`WalkResult` of the load that failed: a
        GENERAL_PROTECTION fault where a present PDPTE has a reserved bit, an EPT violation with bits 7 and 8 clear.
    :raises StateError: the state is not one of PAE paging. :raises BusError: CR3 or an EPT root outside memory.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef Steps steps
    cdef int fault
    if state.paging.mode != MODE_PAE:
        raise StateError(f"PDPTE registers exist with PAE paging only, not with {state.mode.name}")
    pdpt_within(mem, state, eptp)
    prepare(mem, state.replace(pdptes=(0, 0, 0, 0)), eptp, set_ad, True, &paging, &ept, &result.walk)
    steps.n = 0
    fault = load_pdptes(&mem.mem, &paging, &ept if eptp is not None else NULL, &result.walk, &steps)
    if fault:
        result.walk.fault = fault
        result.walk.pa = ONES
        return finish(result, 0, "r", &steps)
    return state.replace(pdptes=tuple(paging.pdpte[i] for i in range(4)))


cdef uint64_t linear_address(va) except? 0:
    if isinstance(va, bool) or not isinstance(va, (int, np.integer)) or not -(1 << 63) <= va < 1 << 64:
        raise StateError(f"a linear address is an integer of 64 bits, not {va!r}")
    return <uint64_t> (int(va) & 0xFFFF_FFFF_FFFF_FFFF)


cdef int pdpt_within(PhysicalMemory mem, GuestState state, eptp) except -1:
    if eptp is None and not mem_holds(&mem.mem, state.paging.cr3 & PDPT, 32):
        raise BusError(f"cr3={state.cr3:#x}: its PDPTEs lie outside memory of {mem.nbytes:#x} bytes")
    return 0


cdef int prepare(PhysicalMemory mem, GuestState state, eptp, set_ad, bint log, Paging *paging,
                 Ept *ept, Walk *w) except -1:
    """Copies of the derived registers, checked against memory; a fault code where loading PDPTEs fails.

    log: whether the page-modification log has a part in it. A translation alone neither fills it nor waits for it, and
    nothing exits from it, whatever page its tables are on.
    """
    cdef Eptp pointer
    cdef Ept *e = NULL
    cdef int fault = 0
    if set_ad and not mem.writable:
        raise StateError("set_ad=True needs writable memory; this memory is read-only, pass a copy or set_ad=False")
    paging[0] = state.paging
    paging.write_ad = bool(set_ad)
    if eptp is not None:
        pointer = as_eptp(eptp)
        ept[0] = pointer.ept
        if log and pointer.pml is not None and ept.ad:
            ept.pml_base = pointer.pml.base
            ept.pml_index = &pointer.pml.next
        if not log:
            ept.apic_access = 0
        ept.write_ad = bool(set_ad)
        e = ept
        if not mem_holds(&mem.mem, ept.root, 4096):
            raise BusError(f"eptp={pointer.value:#x}: its table lies outside memory of {mem.nbytes:#x} bytes")
    elif paging.levels and paging.mode != MODE_PAE and not mem_holds(&mem.mem, paging.root, 4096):
        raise BusError(f"cr3={state.cr3:#x}: its table lies outside memory of {mem.nbytes:#x} bytes")
    if paging.mode == MODE_PAE and state.pdptes is None:
        pdpt_within(mem, state, eptp)
        fault = load_pdptes(&mem.mem, paging, e, w, NULL)
        w.fault = fault
        if fault:
            w.pa = ONES
    return fault
