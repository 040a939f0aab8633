"""One walk at a time, with every memory reference that it makes: the door to the walks of paging/."""

import numpy as np

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport flag, guest_physical_address, shown, whole
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.memtype cimport effective_type
from fastmmu.arch.types cimport (
    FAULT_APIC, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_NONE, FAULT_NPF, FAULT_PF, FAULT_PML_FULL, FAULT_SPP,
    MODE_4, MODE_PAE, STEP_DATA, Ept, Paging, PmlQuery, Step, Steps, Walk,
)
from fastmmu.paging.agile cimport ROOT_SHADOW, ROOT_SWITCHED, Agile, walk_agile
from fastmmu.paging.ept cimport (
    NEED_R, NEED_W, QUAL_GLA, QUAL_TRANSLATED, EptLeaf, ept_facts, ept_walk, need_of, step,
)
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport Eptp, GuestState, Npt, access_code, as_eptp, pdpt_within, prepare
from fastmmu.paging.walk cimport load_pdptes, walk_cached, walk_steps
from fastmmu.tlb.lookup cimport Tlb
from fastmmu.tlb.tlb cimport TLB
from fastmmu.threads.turns cimport Turn
from fastmmu.arch.memtype_py import MemoryType
from fastmmu.dtypes import STEP_DTYPE, Fault
from fastmmu.errors import StateError, WrongTypeError
from fastmmu.exits import Qualification


cdef class WalkResult:
    """What one access came to, and each memory reference on the way.

    ``.pa``: host-physical address (int; all ones where it did not translate). ``.fault``: a
    :class:`~fastmmu.dtypes.Fault`. ``.steps``: record array of dtype ``STEP_DTYPE`` in the order of the references.
    ``.gpa``: guest-physical address of the data, or of the reference that failed. ``.npt``: it went over nested page
    tables of AMD's, and "EPT" in the other names means these. Only walks make one.

    Threads: immutable; share it.
    """

    def __cinit__(self):
        self.la, self.access = 0, "r"
        self.steps = np.empty(0, STEP_DTYPE).view(np.recarray)

    def __init__(self):
        raise WrongTypeError("a WalkResult is what walk() and walk_ept() return; it is not made by hand")

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
        """#PF error code (SDM vol. 3, "Page-Fault Exceptions"; paging.md §5); that of a nested page fault, EXITINFO1
        of #VMEXIT(NPF) (APM vol. 2, 15.25.6; npt.md §4); None for any other outcome."""
        if self.walk.fault == FAULT_NPF:
            return self.walk.qual
        return self.walk.error_code if self.walk.fault == FAULT_PF else None

    @property
    def cr2(self):
        """CR2 as the #PF leaves it: the linear address; None for any other outcome."""
        return self.la if self.walk.fault == FAULT_PF else None

    @property
    def qualification(self):
        """Exit qualification of an EPT violation (SDM vol. 3, table "Exit Qualification for EPT Violations"; ept.md
        §4.1), None for any other outcome."""
        return Qualification(self.walk.qual) if self.walk.fault == FAULT_EPT_VIOLATION else None

    @property
    def exit_qualification(self):
        """Exit qualification (int) of any outcome that is a VM exit, EXITINFO1 of AMD's; None for the others."""
        return self.walk.qual if self.walk.fault in (
            FAULT_EPT_VIOLATION, FAULT_EPT_MISCONFIG, FAULT_PML_FULL, FAULT_SPP, FAULT_APIC, FAULT_NPF) else None

    @property
    def gla(self):
        """Guest-linear address of an EPT violation, where its qualification says it is valid; else None."""
        return self.la if self.walk.fault == FAULT_EPT_VIOLATION and self.walk.qual & QUAL_GLA else None

    @property
    def memory_type(self):
        """Effective :class:`MemoryType` of the access (SDM vol. 3, "Paging and Memory Typing", "EPT and Memory Typing";
        paging.md §8, ept.md §8); None where it did not translate."""
        return None if self.walk.fault else MemoryType(self.mt)

    @property
    def ept_memory_type(self):
        """(type, ignore-PAT bit) of the EPT leaf; None without EPT or where it did not translate."""
        if self.walk.fault or not self.walk.ept_shift:
            return None
        return MemoryType(self.walk.ept_mt), bool(self.walk.ept_ipat)

    @property
    def suppress_ve(self):
        """Bit 63 of the EPT entry that decided: with it, an EPT violation stays an exit and is no #VE (SDM
        vol. 3, "Virtualization Exceptions"; ept.md §9)."""
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

    def __reduce__(self):
        return _restored, (self.walk, self.la, self.access, self.steps, self.mt, self.npt)

    def __repr__(self):
        if self.walk.fault == FAULT_NONE:
            return f"<walk {self.la:#x} -> {self.walk.pa:#x}, {len(self.steps)} steps>"
        return f"<walk {self.la:#x}: {self.fault.name}, {len(self.steps)} steps>"


def _restored(walk, la, access, steps, mt, npt=False):
    # a copied or pickled result; its steps are as unwritable as those of the first
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    result.walk, result.la, result.access, result.steps, result.mt = walk, la, access, steps, mt
    result.npt = npt
    steps.flags.writeable = False
    return result


cdef Turn log_turn(eptp, set_ad):
    # of an access that the page-modification log may note
    if flag("set_ad", set_ad) and isinstance(eptp, Eptp) and (<Eptp> eptp).pml is not None:
        return (<Eptp> eptp).pml.turns.take()
    return None


def walk(PhysicalMemory mem not None, GuestState state not None, va, *, access="r", eptp=None, set_ad=False,
         TLB tlb=None):
    """Translate one linear address and report every memory reference.

    :param mem: host physical memory. :param state: registers. :param va: linear address: an integer of 64 bits, or the
        negative number that such a one sign-extends.
    :param access: "r", "w", "rw" (read-modify-write) or "x" (fetch).
    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`, AMD's nested paging; None = neither.
    :param set_ad: False: a query, with the outcome that the access would have and memory left as it is. True: an
        access, which sets accessed and dirty flags in memory (SDM vol. 3, "Accessed and Dirty Flags", and those "for
        EPT"; paging.md §6, ept.md §7).
    :param tlb: a :class:`~fastmmu.tlb.tlb.TLB` whose paging-structure caches and guest-physical mappings the walk uses
        and fills, in the context that it has in force; needs set_ad=True. None: no caches.
    :returns: :class:`WalkResult` with ``.pa``, ``.fault``, ``.steps``.
    :raises StateError: an address, access or EPTP that is none. :raises BusError: a root table outside memory.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef PmlQuery log
    cdef Steps steps
    cdef const Ept *e = NULL
    cdef int acc = access_code(access)
    cdef uint64_t la = linear_address(va)
    cdef int fault = prepare(mem, state, eptp, set_ad, &log, &paging, &ept, &result.walk)
    cdef Tlb *caches = NULL
    cdef Turn _tlb_turn, _turn = log_turn(eptp, set_ad)
    if tlb is not None:
        if not paging.write_ad:
            raise StateError("a walk that fills caches is an access: pass set_ad=True with tlb=")
        caches = tlb.t
        _tlb_turn = tlb.turns.apart()
    if eptp is not None:
        e = &ept
        result.npt = ept.npt
    if paging.mode < MODE_4:
        la &= 0xFFFFFFFFU
    steps.n = 0
    if not fault:
        with nogil:
            if caches != NULL:
                walk_cached(&mem.mem, &paging, e, caches, la, acc, &result.walk, &steps)
            else:
                walk_steps(&mem.mem, &paging, e, la, acc, &result.walk, &steps)
        mem.settle()
    if not result.walk.fault:
        result.mt = effective_type(&paging, &state.mtrrs.state, &result.walk, e)
    return finish(result, la, access, &steps)


def walk_switched(PhysicalMemory mem not None, GuestState state not None, va, *, shadow, eptp, access="r", set_ad=False,
                  TLB tlb=None):
    """Translate one linear address as a processor with agile paging does (J. Gandhi, M. D. Hill, M. M. Swift: Agile
    paging, ISCA 2016; agile.md §1-§3): by shadow tables, and from an entry that switches on by the guest's own, each
    reference of which goes over the EPT.

    :param mem: host physical memory. :param state: the guest's registers, of 4- or 5-level paging.
    :param shadow: :class:`GuestState` with the registers that the shadow tables are walked by, CR3 their root, as many
        levels as the guest's; privilege counts as there. Or an integer: the host-physical address of the guest's own
        root table, which the processor has in the place of a shadow root.
    :param eptp: EPT pointer (int or :class:`Eptp`). The others: as of :func:`walk`.
    :returns: (:class:`WalkResult`, levels of the guest's own tables that were walked). Where the walk switches the
        guest-physical address of a step is that in host memory.
    :raises StateError: an address, access or EPTP that is none, other paging modes. :raises BusError: a root outside
        memory.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef GuestState above = shadow if isinstance(shadow, GuestState) else state
    cdef Paging hw
    cdef Agile a
    cdef PmlQuery log
    cdef Steps steps
    cdef int acc = access_code(access), nested = 0
    cdef uint64_t la = linear_address(va)
    cdef Tlb *caches = NULL
    cdef Turn _tlb_turn, _turn = log_turn(eptp, set_ad)
    if eptp is None or isinstance(eptp, Npt):
        raise StateError(f"agile paging switches to an EPT, not to {shown(eptp)}; give eptp=")
    if state.paging.mode < MODE_4 or above.paging.mode != state.paging.mode:
        raise StateError(f"agile paging of {state.mode.name} below {above.mode.name}; both must have 4 "
                         "levels, or 5")
    prepare(mem, state, eptp, set_ad, &log, &a.guest, &a.ept, &result.walk)
    a.root, a.root_hpa = ROOT_SHADOW, 0
    hw = state.paging
    if isinstance(shadow, GuestState):
        prepare(mem, shadow, None, set_ad, NULL, &hw, NULL, &result.walk)
    else:
        a.root, a.root_hpa = ROOT_SWITCHED, guest_physical_address("host-physical root of the guest's tables", shadow)
    if tlb is not None:
        if not a.guest.write_ad:
            raise StateError("a walk that fills caches is an access: pass set_ad=True with tlb=")
        caches = tlb.t
        _tlb_turn = tlb.turns.apart()
    steps.n = 0
    with nogil:
        walk_agile(&mem.mem, &hw, &a, caches, la, acc, &result.walk, &steps, &nested)
    mem.settle()
    if not result.walk.fault:
        result.mt = effective_type(&a.guest, &state.mtrrs.state, &result.walk, &a.ept if nested else NULL)
    return finish(result, la, access, &steps), nested


def _walk_unrecorded(PhysicalMemory mem not None, GuestState state not None, va, access, eptp, TLB tlb not None):
    # walk() with set_ad and caches, as machines walk: without a record of its steps. For tests: (fault, pa, gpa, error
    # code or None, exit qualification or None, references to guest and EPT entries)
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef PmlQuery log
    cdef uint64_t la = linear_address(va)
    cdef int acc = access_code(access)
    if not prepare(mem, state, eptp, True, &log, &paging, &ept, &result.walk):
        la &= 0xFFFFFFFFU if paging.mode < MODE_4 else ONES
        walk_cached(&mem.mem, &paging, &ept if eptp is not None else NULL, tlb.t, la, acc, &result.walk, NULL)
        mem.settle()
    refs = result.guest_refs, result.ept_refs
    return int(result.fault), result.pa, result.gpa, result.error_code, result.exit_qualification, *refs


cdef finish(WalkResult result, uint64_t la, access, const Steps *steps):
    result.la = int(la)
    result.access = access
    result.steps = np.frombuffer((<const char *> steps.step)[:steps.n * sizeof(Step)],
                                 dtype=STEP_DTYPE).view(np.recarray)
    return result


def walk_ept(PhysicalMemory mem not None, eptp, gpa, *, access="r", gla=None, paging_structure=False, user=True,
             writable=True, nx=False, GuestState state=None, set_ad=False):
    """Translate one guest-physical address by the EPT alone, or by AMD's nested page tables.

    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`.
    :param gpa: guest-physical address; the walk of 5 levels takes in 57 bits.
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
    cdef PmlQuery log
    cdef Steps steps
    cdef EptLeaf leaf
    cdef int acc = access_code(access), fault
    cdef uint64_t need = need_of(acc)
    cdef uint64_t target, bits = 0
    cdef bint us = flag("user", user), rw = flag("writable", writable), xd = flag("nx", nx)
    cdef bint table = flag("paging_structure", paging_structure)
    target = guest_physical_address("guest-physical gpa", gpa)
    eptp = as_eptp(eptp)
    cdef Turn _turn = log_turn(eptp, set_ad)
    state = GuestState(cr0=0x10) if state is None else state
    prepare(mem, state.replace(cr0=state.cr0 & ~(1 << 31)), eptp, set_ad, &log, &paging, &ept, &result.walk)
    if gla is not None:
        bits = QUAL_GLA
        if not table:
            bits |= QUAL_TRANSLATED
            if ept.adv_info:
                bits |= <uint64_t> us << 9 | <uint64_t> rw << 10 | <uint64_t> xd << 11
        if table:
            need |= NEED_R
            if ept.ad:
                need |= NEED_W
    result.npt = ept.npt
    steps.n = 0
    memset(&result.walk, 0, sizeof(Walk))
    with nogil:
        fault = ept_walk(&mem.mem, &ept, NULL, target, need, us, bits, 0, &leaf, &result.walk, &steps)
    mem.settle()
    result.walk.fault = fault
    result.walk.pa = ONES
    if not fault:
        result.walk.pa = leaf.hpa
        ept_facts(&result.walk, &leaf)
        step(&steps, STEP_DATA, 0, 0, leaf.hpa, target, 0)
        result.mt = effective_type(&paging, &state.mtrrs.state, &result.walk, &ept)
    return finish(result, 0 if gla is None else linear_address(gla), access, &steps)


def load_pdpte_registers(PhysicalMemory mem not None, GuestState state not None, *, eptp=None, set_ad=False):
    """The PAE PDPTE registers as MOV to CR3 loads them from memory (SDM vol. 3, "PDPTE Registers"; paging.md §3.2).

    :param set_ad: under an EPT with accessed flags: False, a query; True, the load sets them, and never a dirty flag.
    :returns: the state with its ``pdptes`` set, or the :class:`WalkResult` of the load that failed: a
        GENERAL_PROTECTION fault where a present PDPTE has a reserved bit, an EPT violation with bits 7 and 8 clear.
    :raises StateError: the state is not one of PAE paging. :raises BusError: CR3 or an EPT root outside memory.
    """
    cdef WalkResult result = WalkResult.__new__(WalkResult)
    cdef Paging paging
    cdef Ept ept
    cdef PmlQuery log
    cdef Steps steps
    cdef int fault
    if state.paging.mode != MODE_PAE:
        raise StateError(f"PDPTE registers exist with PAE paging only, not with {state.mode.name}")
    if isinstance(eptp, Npt):
        raise StateError("under AMD's nested paging a guest has no PDPTE registers; walk() reads the entries")
    pdpt_within(mem, state, eptp)
    prepare(mem, state.replace(pdptes=(0, 0, 0, 0)), eptp, set_ad, &log, &paging, &ept, &result.walk)
    steps.n = 0
    fault = load_pdptes(&mem.mem, &paging, &ept if eptp is not None else NULL, &result.walk, &steps)
    mem.settle()
    if fault:
        result.walk.fault = fault
        result.walk.pa = ONES
        return finish(result, 0, "r", &steps)
    return state.replace(pdptes=tuple(paging.pdpte[i] for i in range(4)))


cdef uint64_t linear_address(va) except? 0:
    cdef object number = whole("a linear address of 64 bits", va)
    if not -(1 << 63) <= number < 1 << 64:
        raise StateError(f"a linear address is an integer of 64 bits, not {shown(number)}")
    return <uint64_t> (number & 0xFFFF_FFFF_FFFF_FFFF)
