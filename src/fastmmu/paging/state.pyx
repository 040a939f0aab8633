"""Guest state and EPT pointer: registers as the programmer knows them, checked once."""

from types import MappingProxyType

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastmmu._arguments cimport choice, flag, many, page_address, shown, within
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.memtype_py cimport Mtrrs
from fastmmu.arch.registers cimport (
    CR0_DEFINED, CR0_ET, CR4_DEFINED, EFER_DEFINED, RULE_CR0_HIGH, RULE_CR0_NW, RULE_CR0_PE, RULE_CR4_CET, Registers,
    pae_paging, paging_of,
)
from fastmmu.arch.types cimport ACC_R, ACC_RW, ACC_W, ACC_X, MODE_4, MODE_5, MODE_32, MODE_NONE, MODE_PAE, Ept, Walk
from fastmmu.paging.ept cimport (
    EPTP_AD, EPTP_ADDRESS, EPTP_LENGTH, EPTP_RESERVED, EPTP_TYPE, ept_of, eptp_defect,
)
from fastmmu.paging.guest cimport PDPT
from fastmmu.paging.memory cimport PhysicalMemory, mem_holds
from fastmmu.paging.npt cimport npt_of
from fastmmu.paging.walk cimport load_pdptes
from fastmmu.threads.turns cimport Turns
from fastmmu.arch.registers import RULES
from fastmmu.errors import BusError, Code, StateError, WrongTypeError

_PE, _WP, _NW, _CD, _PG = 1 << 0, 1 << 16, 1 << 29, 1 << 30, 1 << 31
_PAE, _PCIDE, _CET = 1 << 5, 1 << 17, 1 << 23
PAT_RESET = 0x0007040600070406
_LME, _LMA = 1 << 8, 1 << 10
_ACCESS = {"r": ACC_R, "w": ACC_W, "rw": ACC_RW, "x": ACC_X}


class Mode(Code):
    """Paging modes (SDM vol. 3, "Paging-Mode Enabling"; paging.md §1.1)."""

    NONE = MODE_NONE
    BITS_32 = MODE_32
    PAE = MODE_PAE
    LEVEL_4 = MODE_4
    LEVEL_5 = MODE_5


cdef object _integer(str name, object value, int bits):
    # a register or a field of one
    if bits == 1:
        return 1 if flag(name, value) else 0
    return within(name, value, 0, ~<uint64_t> 0 >> (64 - bits))


cpdef int access_code(object access) except -1:
    """Code of an access given as "r", "w", "rw" (read-modify-write) or "x"."""
    if not isinstance(access, str) or access not in _ACCESS:
        kind = StateError if isinstance(access, str) else WrongTypeError
        raise kind(f'access must be "r", "w", "rw" or "x", not {shown(access)}')
    return _ACCESS[access]


cdef class GuestState:
    """The registers that guest paging depends on; immutable, see :meth:`replace`. ``.registers``: all of them, a
    read-only mapping with the names of the constructor.

    The defaults are those of a 64-bit kernel: long mode with 4-level paging, CR0.WP, EFER.NXE, CPL 0.

    :param cr0, cr3, cr4, efer: control registers (int). Bits 31:0 of CR0 that no processor has are ignored, as by
        MOV, and so is EFER.LMA without paging. With CR4.PCIDE bit 63 of CR3 is that of the operand of a MOV: walks do
        not look at it, VM entry refuses it.
    :param cpl: current privilege level, 0..3. :param ac: RFLAGS.AC. :param pkru, pkrs: protection-key rights.
    :param implicit: the access is an implicit supervisor access (descriptor tables).
    :param maxphyaddr: physical-address width M, 32..52; bits M and above of an entry are reserved.
    :param page1gb: 1 GB pages exist. :param pse36: width N of PSE-36 addresses, 32 (none)..40.
    :param pdptes: the four PAE PDPTE registers; with None they are loaded from memory at CR3 by each call.
    :param upper_a: "eager" or "lazy", when A of upper entries is set in walks that fault (SDM vol. 3,
        "Accessed and Dirty Flags", leaves it open; paging.md §6).
    :param pat: IA32_PAT. :param mtrrs: :class:`Mtrrs`, for the memory type without EPT; default: all write-back.
    :raises StateError: a value that does not fit, or one that a write of the modelled processor refuses (SDM volume 3,
        2.5 and 4.1): bits 63:32 of CR0, NW without CD, PG without PE, CR3 beyond MAXPHYADDR; in CR4 the reserved bits
        and SMXE, KL, UINTR, LASS, LAM_SUP and FRED, which it does not have, PCIDE outside long mode, CET without
        CR0.WP; in EFER bits other than SCE, LME, LMA and NXE, and LMA other than LME while paging is on.

    Threads: immutable; share it.
    """

    def __cinit__(self, *, cr0=0x80050033, cr3=0, cr4=0xA0, efer=0xD01, cpl=0, ac=0, pkru=0, pkrs=0, implicit=False,
                  maxphyaddr=52, page1gb=True, pse36=None, pdptes=None, upper_a="eager",
                  pat=PAT_RESET, Mtrrs mtrrs=None):
        maxphyaddr = within("maxphyaddr", maxphyaddr, 32, 52)
        pse36 = min(maxphyaddr, 40) if pse36 is None else within("pse36", pse36, 32, 40)
        upper_a = choice("upper_a", upper_a, ("eager", "lazy"))
        if pdptes is not None:
            pdptes = tuple([within("a PDPTE", entry, 0, ~<uint64_t> 0) for entry in many("pdptes", pdptes)])
            if len(pdptes) != 4:
                raise StateError(f"there are four PDPTE registers, not {len(pdptes)}")
        self.registers = MappingProxyType({
            "cr0": _integer("cr0", cr0, 64), "cr3": _integer("cr3", cr3, 64), "cr4": _integer("cr4", cr4, 64),
            "efer": _integer("efer", efer, 64), "cpl": _integer("cpl", cpl, 2), "ac": _integer("ac", ac, 1),
            "pkru": _integer("pkru", pkru, 32), "pkrs": _integer("pkrs", pkrs, 32),
            "implicit": flag("implicit", implicit),
            "maxphyaddr": maxphyaddr, "page1gb": flag("page1gb", page1gb), "pse36": pse36, "pdptes": pdptes,
            "upper_a": upper_a, "pat": _integer("pat", pat, 64), "mtrrs": mtrrs,
        })
        _pat(self.registers["pat"])
        self.mtrrs = Mtrrs() if mtrrs is None else mtrrs
        self._derive()

    def _derive(self):
        cdef Registers *g = &self.regs
        r = self.registers
        cdef uint64_t cr0 = r["cr0"], cr3 = r["cr3"], cr4 = r["cr4"], efer = r["efer"]
        cdef int m = r["maxphyaddr"]
        if cr0 >> 32:
            raise StateError(f"cr0={cr0:#x}: {RULES[RULE_CR0_HIGH]}; clear them")
        if cr0 & _NW and not cr0 & _CD:
            raise StateError(f"cr0={cr0:#x}: {RULES[RULE_CR0_NW]}")
        if cr0 & _PG and not cr0 & _PE:
            raise StateError(f"cr0={cr0:#x}: {RULES[RULE_CR0_PE]}")
        for name, value, lacking in (("cr4", cr4, cr4 & ~CR4_DEFINED), ("efer", efer, efer & ~EFER_DEFINED)):
            if lacking:
                raise StateError(f"{name}={value:#x}: the modelled processor does not have {lacking:#x}; clear that")
        if cr4 & _CET and not cr0 & _WP:
            raise StateError(f"cr4={cr4:#x}: {RULES[RULE_CR4_CET]}")
        lma = bool(cr0 & _PG and efer & _LMA)
        if cr0 & _PG and bool(efer & _LME) != bool(efer & _LMA):
            raise StateError(f"efer={efer:#x}: with paging on, LMA must equal LME; set or clear both bits 8 and 10")
        if lma and not cr4 & _PAE:
            raise StateError(f"cr4={cr4:#x}: long mode needs CR4.PAE (bit 5)")
        if cr4 & _PCIDE and not lma:
            raise StateError(f"cr4={cr4:#x}: CR4.PCIDE (bit 17) needs long mode")
        if (cr3 & ~(<uint64_t> 1 << 63 if cr4 & _PCIDE else 0)) >> m:
            raise StateError(f"cr3={cr3:#x} has bits at or above MAXPHYADDR={m}")
        memset(g, 0, sizeof(Registers))
        g.cr0, g.cr3, g.cr4 = cr0 & CR0_DEFINED | CR0_ET, cr3, cr4
        g.efer = efer if cr0 & _PG else efer & ~(<uint64_t> _LMA)
        g.maxphyaddr, g.page1gb, g.pse36 = m, r["page1gb"], r["pse36"]
        g.pat, g.pkru, g.pkrs = r["pat"], r["pkru"], r["pkrs"]
        g.cpl, g.ac, g.implicit = r["cpl"], r["ac"], r["implicit"]
        g.lazy_upper_a = r["upper_a"] == "lazy"
        if pae_paging(g) and r["pdptes"] is not None:
            self._load_pdptes(r["pdptes"])
        paging_of(g, &self.paging)

    def _load_pdptes(self, pdptes):
        cdef uint64_t reserved = 0x1E6 | ~((<uint64_t> 1 << <int> self.registers["maxphyaddr"]) - 1)
        for i, entry in enumerate(pdptes):
            if entry & 1 and entry & reserved:
                raise StateError(f"PDPTE{i}={entry:#x} has reserved bits {entry & reserved:#x} (paging.md §3.2)")
            self.regs.pdpte[<int> i] = entry

    def replace(self, **changes):
        """A new state with some registers changed; the names are those of the constructor."""
        return GuestState(**{**self.registers, **changes})

    def __getattr__(self, name):
        try:
            return self.registers[name]
        except KeyError:
            raise AttributeError(f"GuestState has no register {name!r}") from None

    @property
    def mode(self):
        """Paging mode in force, a :class:`Mode`."""
        return Mode(self.paging.mode)

    def __eq__(self, other):
        return isinstance(other, GuestState) and self.registers == other.registers

    def __hash__(self):
        return hash(tuple(self.registers.values()))

    def __reduce__(self):
        return _restore, (GuestState, dict(self.registers))

    def __repr__(self):
        values = ", ".join(
            f"{k}={v:#x}" if type(v) is int and v > 9 else f"{k}={v!r}" for k, v in self.registers.items()
        )
        return f"GuestState({values})"


def _restore(make, arguments):
    return make(**arguments)


def _eptp(value, pml, options):
    return Eptp(value, pml=pml, **options)


def _npt(value, options):
    return Npt(value, **options)


cdef object _pat(object pat):
    # IA32_PAT as WRMSR takes it
    for index in range(8):
        if pat >> 8 * index & 0xFF not in (0, 1, 4, 5, 6, 7):
            raise StateError(f"pat={pat:#x}: entry {index} is no memory type; use 0, 1, 4, 5, 6 or 7")
    return pat


cdef class Pml:
    """The page-modification log of a virtual CPU: 512 entries, filled downwards (SDM vol. 3, "Page-Modification
    Logging"; ept.md §7).

    :param base: its address, a multiple of 4 KB. :param index: entry that the next address goes to, 0..65535; above 511
        the log is full. ``.index`` follows the log and may be set.
    :raises StateError: an address or index that is none.

    Threads: accesses that log to it take turns.
    """

    def __cinit__(self, base, index=511):
        self.turns = Turns()
        self.base = page_address("PML address", base)
        self.next = within("PML index", index, 0, 0xFFFF)

    @property
    def index(self):
        return self.next

    @index.setter
    def index(self, value):
        self.next = within("PML index", value, 0, 0xFFFF)

    def __reduce__(self):
        return Pml, (self.base, self.next)

    def __repr__(self):
        return f"Pml({self.base:#x}, index={self.next})"


cdef class SecondLevel:
    """What a guest's physical addresses are translated by, :class:`Eptp` or :class:`Npt`; immutable.

    Threads: share it.
    """

    def __repr__(self):
        return f"{type(self).__name__}({self.value:#x})"

    def __eq__(self, other):
        return type(other) is type(self) and (self.value, self.options) == (other.value, other.options)

    def __hash__(self):
        return hash((self.value, tuple(self.options.values())))


cdef class Eptp(SecondLevel):
    """An EPT pointer with the capabilities that decide what it means (SDM vol. 3, "Extended-Page-Table Pointer (EPTP)";
    ept.md §1); immutable. ``.value``: the EPTP;
    ``.options``: the other arguments but `pml`, a read-only mapping; ``.pml``. A copy has the same log, a deep copy and
    one that was pickled have a log of their own.

    :param value: EPTP as in the VMCS: root table | A/D (bit 6) | walk length - 1 (5:3) | memory type (2:0);
        a 4-level write-back table at ``root`` is ``root | 0x1E``.
    :param execute_only: execute-only translations are supported. :param mbec: mode-based execute control is on.
    :param advanced_info: qualification bits 9..11 are reported.
    :param ad_before_final: guest A/D flags are set before the final address is translated (the SDM
        leaves it open; ept.md §6).
    :param guest_ad_checked: with EPT A/D flags off, setting them needs EPT write permission; False: as Bochs.
    :param pml: :class:`Pml`, the page-modification log; None: off. :param spptp: address of the sub-page permission
        table; None: off. :param apic_access: address of the APIC-access page; None: APIC accesses are not virtualized.
        A walk ends where a paging structure of the guest lies on that page, with ``Fault.APIC_ACCESS`` (exit 44); what
        the access itself does there is :class:`VirtualApic`'s. ``translate`` and ``mappings`` say where tables lead,
        whatever page they are on.
    :raises StateError: an EPTP that VM entry would refuse, naming the field.

    Threads: immutable but for its log; share it.
    """

    def __cinit__(self, value, *, maxphyaddr=52, execute_only=True, mbec=False, page1gb=True, advanced_info=True,
                  ad_before_final=True, guest_ad_checked=True, Pml pml=None, spptp=None, apic_access=None):
        value = within("eptp", value, 0, ~<uint64_t> 0)
        maxphyaddr = within("maxphyaddr", maxphyaddr, 32, 52)
        why = eptp_fault(value, maxphyaddr)
        if why:
            raise StateError(f"eptp={value:#x}: {why}")
        self.value = value
        self.options = MappingProxyType({
            "maxphyaddr": maxphyaddr, "execute_only": flag("execute_only", execute_only), "mbec": flag("mbec", mbec),
            "page1gb": flag("page1gb", page1gb), "advanced_info": flag("advanced_info", advanced_info),
            "ad_before_final": flag("ad_before_final", ad_before_final),
            "guest_ad_checked": flag("guest_ad_checked", guest_ad_checked),
            "spptp": None if spptp is None else _page_below("spptp", spptp, maxphyaddr),
            "apic_access": None if apic_access is None else _page_below("apic_access", apic_access, maxphyaddr),
        })
        self.pml = pml
        cdef Ept *e = &self.ept
        options = self.options
        ept_of(e, value, maxphyaddr, options["page1gb"], options["mbec"])
        e.xo = options["execute_only"]
        e.adv_info = options["advanced_info"]
        e.ad_before_final = options["ad_before_final"]
        e.ad_unchecked = not options["guest_ad_checked"]
        if spptp is not None:
            e.spp = 1
            e.spptp = options["spptp"]
        if apic_access is not None:
            e.apic_access = options["apic_access"] | 0xFFF

    def __reduce__(self):
        return _restore, (_eptp, {"value": self.value, "pml": self.pml, "options": dict(self.options)})


cdef class Npt(SecondLevel):
    """Nested page tables of AMD's processors, given where an EPT pointer goes: ``walk(memory, state, va,
    eptp=Npt(ncr3))`` (APM vol. 2, 15.25; npt.md). ``.value``: nCR3; ``.options``: the other arguments.

    Its entries have the format of the host's own paging, and each access to a page counts as one by user mode, so that
    U/S must be set at every level; each to a paging structure of the guest counts as a write, too. What stops one is
    ``Fault.NESTED_PAGE_FAULT``. The guest has no PDPTE registers: walks read those entries where they lie.

    :param value: nCR3 as in the VMCB; bits 11:0, PWT and PCD among them, play no part.
    :param levels: 4, or 5 for a host with CR4.LA57. :param maxphyaddr: physical-address width M, 32..52.
    :param nxe: the host's EFER.NXE as of VMRUN; False: bit 63 is reserved. :param page1gb: 1 GB pages exist.
    :param pat: the host's IA32_PAT, by which its entries say their memory type.
    :param ad_before_final: guest A/D flags are set before the final address is translated.
    :raises StateError: an argument that is none, or an nCR3 that VMRUN refuses.

    Threads: immutable; share it.
    """

    def __cinit__(self, value, *, levels=4, maxphyaddr=52, nxe=True, page1gb=True, pat=PAT_RESET,
                  ad_before_final=True):
        value = within("ncr3", value, 0, ~<uint64_t> 0)
        maxphyaddr = within("maxphyaddr", maxphyaddr, 32, 52)
        if value >> maxphyaddr:
            raise StateError(f"ncr3={value:#x} has bits at or above MAXPHYADDR={maxphyaddr}; clear them")
        self.value = value
        self.options = MappingProxyType({
            "levels": within("levels", levels, 4, 5), "maxphyaddr": maxphyaddr, "nxe": flag("nxe", nxe),
            "page1gb": flag("page1gb", page1gb), "pat": _pat(_integer("pat", pat, 64)),
            "ad_before_final": flag("ad_before_final", ad_before_final),
        })
        options = self.options
        npt_of(&self.ept, value, options["levels"], maxphyaddr, options["page1gb"], options["nxe"], options["pat"])
        self.ept.ad_before_final = options["ad_before_final"]

    def __reduce__(self):
        return _restore, (_npt, {"value": self.value, "options": dict(self.options)})


def eptp_fault(value, maxphyaddr=52, ad_supported=True, five_levels=True):
    """Why VM entry and INVEPT refuse an EPTP, as a sentence with the remedy; "" if they accept it (SDM
    vol. 3, "Extended-Page-Table Pointer (EPTP)"; ept.md §1)."""
    cdef uint64_t bits = within("eptp", value, 0, ~<uint64_t> 0)
    cdef int m = within("maxphyaddr", maxphyaddr, 32, 52)
    cdef bint five = flag("five_levels", five_levels)
    cdef int defect = eptp_defect(bits, m, flag("ad_supported", ad_supported), five)
    if defect == EPTP_TYPE:
        return f"memory type {bits & 7} (bits 2:0) is neither 0 (UC) nor 6 (WB); a 4-level WB pointer is root | 0x1e"
    if defect == EPTP_LENGTH:
        return (f"walk length - 1 is {bits >> 3 & 7} (bits 5:3), must be 3{' or 4' if five else ''}; "
                "a 4-level WB pointer is root | 0x1e")
    if defect == EPTP_AD:
        return "accessed and dirty flags (bit 6) are not supported"
    if defect == EPTP_RESERVED:
        return f"bits 11:7 are reserved, have {bits >> 7 & 31:#x}"
    if defect == EPTP_ADDRESS:
        return f"bits at or above MAXPHYADDR={m} are set"
    return ""


cdef uint64_t _page_below(str name, object value, int bits) except? 0xBAD:
    cdef uint64_t found = page_address(name, value)
    if found >> bits:
        raise StateError(f"{name}={found:#x} does not fit {bits} bits, the physical-address width")
    return found


cdef SecondLevel as_eptp(object eptp):
    if isinstance(eptp, SecondLevel):
        return eptp
    return Eptp(eptp)


cdef int pdpt_within(PhysicalMemory mem, GuestState state, eptp) except -1:
    if eptp is None and not mem_holds(&mem.mem, state.paging.cr3 & PDPT, 32):
        mem.settle()
        raise BusError(f"cr3={state.cr3:#x}: its PDPTEs lie outside memory of {mem.nbytes:#x} bytes")
    return 0


cdef int prepare(PhysicalMemory mem, GuestState state, eptp, set_ad, PmlQuery *log, Paging *paging,
                 Ept *ept, Walk *w) except -1:
    """Copies of the derived registers, checked against memory; a fault code where loading PDPTEs fails.

    log: what a query keeps of the page-modification log; NULL: the log has no part in it. A translation alone neither
    fills it nor waits for it, and nothing exits from it, whatever page its tables are on.
    """
    cdef SecondLevel pointer
    cdef Ept *e = NULL
    cdef int fault = 0
    cdef bint sets = flag("set_ad", set_ad)
    if sets and not mem.writable:
        raise StateError("set_ad=True needs writable memory; this memory is read-only, pass a copy or set_ad=False")
    paging[0] = state.paging
    paging.write_ad = sets
    if eptp is not None:
        pointer = as_eptp(eptp)
        ept[0] = pointer.ept
        if log == NULL:
            ept.apic_access = 0
        elif pointer.pml is not None and ept.ad:
            ept.pml_base = pointer.pml.base
            ept.pml_index = &pointer.pml.next
            ept.pml_query = NULL if sets else log
            log.n = log.logged = 0
        ept.write_ad = sets
        e = ept
        if not mem.has_table(ept.root):
            mem.settle()
            raise BusError(f"{'ncr3' if ept.npt else 'eptp'}={pointer.value:#x}: its table lies outside memory of "
                           f"{mem.nbytes:#x} bytes")
    elif paging.levels and paging.mode != MODE_PAE and not mem.has_table(paging.root):
        mem.settle()
        raise BusError(f"cr3={state.cr3:#x}: its table lies outside memory of {mem.nbytes:#x} bytes")
    if paging.mode == MODE_PAE and state.pdptes is None and (e == NULL or not e.npt):
        pdpt_within(mem, state, eptp)
        fault = load_pdptes(&mem.mem, paging, e, w, NULL)
        mem.settle()
        w.fault = fault
        if fault:
            w.pa = ONES
        if log != NULL:
            log.n = log.logged = 0          # what is asked of the log begins with the walk
    return fault
