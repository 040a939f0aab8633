"""`MemoryType` and `Mtrrs`, for Python."""

from types import MappingProxyType

from fastmmu._arguments cimport many, physical_address, shown, word
from fastmmu.arch.memtype cimport MT_UC, MT_UC_MINUS, MT_WB, MT_WC, MT_WP, MT_WT, mtrr_type

from fastmmu.errors import Code, StateError


class MemoryType(Code):
    """Encodings of memory types; UC_MINUS exists in the PAT only."""

    UC = MT_UC
    WC = MT_WC
    WT = MT_WT
    WP = MT_WP
    WB = MT_WB
    UC_MINUS = MT_UC_MINUS


cdef class Mtrrs:
    """The memory type range registers; immutable. The default: enabled, all memory write-back.

    :param def_type: IA32_MTRR_DEF_TYPE: type (7:0), FE (10), E (11). :param fixed: the eleven fixed-range registers in
        the order of their numbers (250H, 258H, 259H, 268H..26FH). :param variable: pairs (PHYSBASE, PHYSMASK).
    :raises StateError: a register that holds no memory type, or too many of them.

    Threads: immutable; share it.
    """

    def __cinit__(self, def_type=0x806, fixed=None, variable=()):
        cdef int i
        def_type = word("def_type", def_type)
        fixed = many("fixed", (0,) * 11 if fixed is None else fixed)
        fixed = tuple([word("a fixed-range MTRR", each) for each in fixed])
        variable = tuple([_pair(each) for each in many("variable", variable)])
        if len(fixed) != 11 or len(variable) > 32:
            raise StateError(f"{len(fixed)} fixed-range and {len(variable)} variable MTRRs; need 11 and at most 32")
        types = [def_type & 0xFF, *(value >> 8 * i & 0xFF for value in fixed for i in range(8))]
        types += [base & 0xFF for base, mask in variable if mask >> 11 & 1]
        for kind in types:
            if kind not in (MT_UC, MT_WC, MT_WT, MT_WP, MT_WB):
                raise StateError(f"{kind} is no memory type of an MTRR; use 0, 1, 4, 5 or 6")
        self.registers = MappingProxyType({"def_type": def_type, "fixed": fixed, "variable": variable})
        self.state.enabled = def_type >> 11 & 1
        self.state.fixed_enabled = def_type >> 10 & 1
        self.state.default_type = def_type & 0xFF
        for i in range(88):
            self.state.fixed[i] = types[1 + i]
        for base, mask in variable:
            if mask >> 11 & 1:
                self.state.base[self.state.n] = base
                self.state.mask[self.state.n] = mask
                self.state.n += 1

    def type_at(self, pa):
        """:class:`MemoryType` of a physical address."""
        return MemoryType(mtrr_type(&self.state, physical_address("pa", pa)))

    def __repr__(self):
        return f"Mtrrs(def_type={self.registers['def_type']:#x}, variable={self.registers['variable']})"

    def __eq__(self, other):
        return isinstance(other, Mtrrs) and self.registers == other.registers

    def __hash__(self):
        return hash(tuple(self.registers.values()))

    def __reduce__(self):
        return _mtrrs, (dict(self.registers),)


cdef tuple _pair(object pair):
    # PHYSBASE and PHYSMASK
    both = many("a variable MTRR", pair)
    if len(both) != 2:
        raise StateError(f"a variable MTRR is (PHYSBASE, PHYSMASK), not {shown(pair)}")
    return word("PHYSBASE", both[0]), word("PHYSMASK", both[1])


def _mtrrs(registers):
    return Mtrrs(**registers)
