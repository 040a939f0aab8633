"""Control registers, EFER and PDPTE registers as a value, and the rules by which a write of them is #GP(0)."""

from libc.stdint cimport uint64_t

from fastmmu._arguments cimport instance, many, word
from fastmmu.arch.registers cimport (
    Registers as RegistersState, long_mode, pae_paging, pages, paging_of, registers_cr0, registers_cr3, registers_cr4,
    registers_efer, registers_lmsw, registers_load_pdptes, registers_pdptes,
)
from fastmmu.arch.types cimport Paging
from fastmmu.paging.guest cimport root_address

from fastmmu.errors import StateError, WrongTypeError

cdef object _VCPU = object()    # none but registers_of has it


cdef Registers registers_of(const RegistersState *r):
    cdef Registers found = Registers.__new__(Registers, _VCPU)
    found.r = r[0]
    return found


cdef class Registers:
    """CR0, CR3, CR4, EFER and the PDPTE registers, a value: what ``vcpu.arch`` gives is a copy, and is written back by
    ``vcpu.arch = registers``.

    cr0, cr3, cr4, efer: ints of 64 bits; pdpte: four of them. The methods ``write_...`` do what an instruction does:
    they return 0, or the number of the rule (:data:`fastmmu.arch.registers.RULES`; paging.md §1.2) by which it is
    #GP(0), and then change nothing.

    Threads: a value; each thread needs its own while one changes it.
    """

    def __cinit__(self, made=None):
        if made is not _VCPU:
            raise WrongTypeError("Registers are the `arch` of a vCPU, or a copy of one; they are not made by hand")

    def copy(self):
        """Another one of equal values."""
        return registers_of(&self.r)

    @property
    def cr0(self):
        return self.r.cr0

    @cr0.setter
    def cr0(self, value):
        self.r.cr0 = word("cr0", value)

    @property
    def cr3(self):
        return self.r.cr3

    @cr3.setter
    def cr3(self, value):
        self.r.cr3 = word("cr3", value)

    @property
    def cr4(self):
        return self.r.cr4

    @cr4.setter
    def cr4(self, value):
        self.r.cr4 = word("cr4", value)

    @property
    def efer(self):
        return self.r.efer

    @efer.setter
    def efer(self, value):
        self.r.efer = word("efer", value)

    @property
    def pdpte(self):
        return tuple([int(self.r.pdpte[i]) for i in range(4)])

    @pdpte.setter
    def pdpte(self, values):
        cdef uint64_t loaded[4]
        four(values, loaded)
        for i in range(4):
            self.r.pdpte[i] = loaded[i]

    # ---- what they mean --------------------------------------------------------------------------------------

    @property
    def pages(self):
        """Paging is on (CR0.PG)."""
        return pages(&self.r)

    @property
    def long_mode(self):
        """EFER.LMA."""
        return long_mode(&self.r)

    @property
    def pae(self):
        """PAE paging: by the PDPTE registers."""
        return pae_paging(&self.r)

    @property
    def levels(self):
        """Levels of tables that are read from memory: 0 without paging, 2 (32-bit and PAE paging), 4, 5."""
        cdef Paging p
        paging_of(&self.r, &p)
        return p.levels

    def root(self, cr3):
        """Address of the tables that a value of CR3 leads to in this mode: the top table, of PAE paging the PDPTEs
        (paging.md §2)."""
        cdef Paging p
        cdef uint64_t value = word("cr3", cr3)
        paging_of(&self.r, &p)
        return root_address(&p, value)

    def frame(self, entry):
        """Address bits of an entry, below the physical-address width."""
        cdef Paging p
        cdef uint64_t value = word("entry", entry)
        paging_of(&self.r, &p)
        return value & p.frame

    # ---- instructions ----------------------------------------------------------------------------------------

    def write_cr0(self, value):
        """MOV to CR0; 0, or a rule. The PDPTE registers are the caller's: :meth:`loads_pdptes`."""
        cdef RegistersState new
        cdef int rule = registers_cr0(&self.r, word("value", value), &new)
        if not rule:
            self.r = new
        return rule

    def write_cr3(self, value):
        """MOV to CR3; 0, or a rule. Bit 63 of the operand is not kept."""
        cdef RegistersState new
        cdef int rule = registers_cr3(&self.r, word("value", value), &new)
        if not rule:
            self.r = new
        return rule

    def write_cr4(self, value):
        """MOV to CR4; 0, or a rule."""
        cdef RegistersState new
        cdef int rule = registers_cr4(&self.r, word("value", value), &new)
        if not rule:
            self.r = new
        return rule

    def write_efer(self, value):
        """WRMSR of IA32_EFER; 0, or a rule."""
        cdef RegistersState new
        cdef int rule = registers_efer(&self.r, word("value", value), &new)
        if not rule:
            self.r = new
        return rule

    def lmsw(self, source):
        """CR0 as LMSW of `source` makes it, an int."""
        return registers_lmsw(&self.r, word("source", source))

    def loads_pdptes(self, old):
        """A write of CR0 or CR4 that led here from `old` loads the PDPTE registers (paging.md §3.2)."""
        cdef Registers before = instance("old", old, Registers)
        return registers_load_pdptes(&before.r, &self.r)

    def write_pdptes(self, values):
        """Loads the PDPTE registers, all or none of the four; 0, or a rule."""
        cdef uint64_t loaded[4]
        four(values, loaded)
        return registers_pdptes(&self.r, loaded)

    def __repr__(self):
        return (f"<Registers cr0={int(self.r.cr0):#x} cr3={int(self.r.cr3):#x} cr4={int(self.r.cr4):#x} "
                f"efer={int(self.r.efer):#x}>")


cdef int four(values, uint64_t *out) except -1:
    given = many("the PDPTE registers", values)
    if len(given) != 4:
        raise StateError(f"{len(given)} PDPTE registers; there are 4")
    for i in range(4):
        out[<int> i] = word("a PDPTE", given[i])
    return 0
