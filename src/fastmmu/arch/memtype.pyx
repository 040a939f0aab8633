"""Memory types: what the PAT, the MTRRs and the EPT make of one access."""

import enum

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport MODE_NONE, Paging, Walk
from fastmmu.errors import StateError


class MemoryType(enum.IntEnum):
    """Encodings of memory types; UC_MINUS exists in the PAT only."""

    UC = MT_UC
    WC = MT_WC
    WT = MT_WT
    WP = MT_WP
    WB = MT_WB
    UC_MINUS = MT_UC_MINUS


cdef int combined_type(int below, int pat) noexcept nogil:
    # the table of paging.md §8; `below`: the MTRRs' type, or that of the EPT leaf
    if pat == MT_UC:
        return MT_UC
    if pat == MT_WC:
        return MT_WC
    if pat == MT_UC_MINUS:
        return MT_WC if below == MT_WC or below == MT_WP else MT_UC
    if below == MT_UC:
        return MT_UC
    if below == MT_WC:
        return MT_WC if pat == MT_WB else MT_UC
    return below if pat == MT_WB else pat


cdef int mtrr_type(const MtrrState *s, uint64_t pa) noexcept nogil:
    cdef int i, found = -1, kind
    if not s.enabled:
        return MT_UC
    if pa < 0x100000 and s.fixed_enabled:
        if pa < 0x80000:
            return s.fixed[pa >> 16]
        if pa < 0xC0000:
            return s.fixed[8 + ((pa - 0x80000) >> 14)]
        return s.fixed[24 + ((pa - 0xC0000) >> 12)]
    for i in range(s.n):
        if pa & s.mask[i] & ~(<uint64_t> 0xFFF) != s.base[i] & s.mask[i] & ~(<uint64_t> 0xFFF):
            continue
        kind = s.base[i] & 0xFF
        if found == -1 or found == kind:
            found = kind
        elif (found == MT_WT and kind == MT_WB) or (found == MT_WB and kind == MT_WT):
            found = MT_WT
        else:
            found = MT_UC                       # one of them UC, or undefined: UC
    return s.default_type if found == -1 else found


cdef int effective_type(const Paging *g, const MtrrState *s, const Walk *w, bint ept) noexcept nogil:
    # of the data access of a walk that translated
    cdef int pat
    if g.cd:
        return MT_UC
    if ept and w.ept_ipat:
        return w.ept_mt
    pat = MT_WB if g.mode == MODE_NONE else g.pat >> (8 * w.pat) & 0xFF
    return combined_type(w.ept_mt if ept else mtrr_type(s, w.pa), pat)


cdef class Mtrrs:
    """The memory type range registers; immutable. The default: enabled, all memory write-back.

    :param def_type: IA32_MTRR_DEF_TYPE: type (7:0), FE (10), E (11). :param fixed: the eleven fixed-range registers in
        the order of their numbers (250H, 258H, 259H, 268H..26FH). :param variable: pairs (PHYSBASE, PHYSMASK).
    :raises StateError: a register that holds no memory type, or too many of them.
    """

    def __init__(self, def_type=0x806, fixed=None, variable=()):
        cdef int i
        fixed = (0,) * 11 if fixed is None else tuple(int(value) for value in fixed)
        variable = tuple((int(base), int(mask)) for base, mask in variable)
        if len(fixed) != 11 or len(variable) > 32:
            raise StateError(f"{len(fixed)} fixed-range and {len(variable)} variable MTRRs; need 11 and at most 32")
        types = [def_type & 0xFF, *(value >> 8 * i & 0xFF for value in fixed for i in range(8))]
        types += [base & 0xFF for base, mask in variable if mask >> 11 & 1]
        for kind in types:
            if kind not in (MT_UC, MT_WC, MT_WT, MT_WP, MT_WB):
                raise StateError(f"{kind} is no memory type of an MTRR; use 0, 1, 4, 5 or 6")
        self.registers = {"def_type": int(def_type), "fixed": fixed, "variable": variable}
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

    def type_at(self, uint64_t pa):
        """:class:`MemoryType` of a physical address."""
        return MemoryType(mtrr_type(&self.state, pa))

    def __repr__(self):
        return f"Mtrrs(def_type={self.registers['def_type']:#x}, variable={self.registers['variable']})"

    def __eq__(self, other):
        return isinstance(other, Mtrrs) and self.registers == other.registers

    def __hash__(self):
        return hash(tuple(self.registers.values()))

    def __reduce__(self):
        return _mtrrs, (self.registers,)


def _mtrrs(registers):
    return Mtrrs(**registers)
