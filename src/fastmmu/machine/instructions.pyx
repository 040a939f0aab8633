"""Instructions of a bare guest: accesses, invalidations, those that exit whatever they do."""

from operator import index
from typing import NamedTuple

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport ACC_R, ACC_W
from fastmmu.cpu.access cimport Data, data_access, data_begin, data_size
from fastmmu.cpu.apic_access cimport irq_data
from fastmmu.cpu.control cimport vcpu_invlpg
from fastmmu.cpu.vcpu cimport DONE_ABORT, DONE_EMULATED, DONE_OK, DONE_PF
from fastmmu.machine.assembly cimport Assembly
from fastmmu.machine.events cimport exit_instruction
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.paging.guest cimport reachable
from fastmmu.paging.state cimport access_code

from fastmmu.errors import StateError


class Access(NamedTuple):
    """What one access of a bare guest came to.

    gpa: guest-physical address, None where it faulted, or where a Python policy completed it. error_code, cr2: of the
    #PF, or None.
    """

    gpa: int | None
    error_code: int | None
    cr2: int | None


class Load(NamedTuple):
    """What a load of a bare guest came to: as :class:`Access`, and the value.

    value: what it read; None where it faulted, and where nothing is known of what stands there.
    """

    gpa: int | None
    error_code: int | None
    cr2: int | None
    value: int | None


cdef uint64_t word(value, str name) except? 0xFFFFFFFFFFFFFFFFULL:
    # an address, or what a register gets
    try:
        return index(value)
    except OverflowError:
        raise StateError(f"{name}={value} does not fit 64 bits; give 0..2**64 - 1") from None


cdef unsigned int width(size) except 0:
    # of an access, in bytes
    if not 0 < index(size) <= 16:
        raise StateError(f"an access of {size} bytes; give 1, 2, 4, 8 or 16")
    return size


cdef class Instructions(Assembly):
    """What a bare guest of a :class:`fastmmu.Machine` can do."""

    def access(self, la, access="r", *, bint user=False, size=1):
        """One access of a bare guest: :class:`Access`, with the guest-physical address or the #PF.

        :param access: "r", "w", "rw" (read-modify-write) or "x" (fetch). No data move, as in :meth:`load`
            and :meth:`store`, but the registers of the APIC react: to a write of 0, to a read-modify-write that puts
            back what it read, to a fetch with a VM exit (``Config.tpr``).
        :param size: bytes, 1, 2, 4, 8 or 16; where they cross into the next page both are accessed.
        :raises StateError: an access or size that is none, an address that is not canonical.
        """
        cdef Data d
        data_begin(&d, word(la, "la"), access_code(access), user, width(size))
        self._begin(&d)
        self.v.c.ops[d.acc] += 1
        return self._came(&d)

    def load(self, la, size=8, *, bint user=False):
        """A load of `size` bytes, 1, 2, 4, 8 or 16: :class:`Load`.

        From memory, or from a register of the APIC (``Config.tpr``), whoever emulates it. Of other addresses without
        memory no value is known. Errors: as :meth:`access`.
        """
        cdef Data d
        data_begin(&d, word(la, "la"), ACC_R, user, width(size))
        d.moves = True
        self._begin(&d)
        self.v.c.kernel_accesses += 1
        gpa, error_code, cr2 = self._came(&d)
        value = None
        if error_code is None and d.known:
            value = int.from_bytes((<const char *> d.bytes)[:d.size], "little")
        return Load(gpa, error_code, cr2, value)

    def store(self, la, value, size=8, *, bint user=False):
        """A store of `size` bytes, 1, 2, 4, 8 or 16: :class:`Access`. Page tables are edited this way.

        :raises StateError: a value that they do not hold; else as :meth:`access`.
        """
        cdef Data d
        cdef bytes stored
        data_begin(&d, word(la, "la"), ACC_W, user, width(size))
        d.moves = True
        self._begin(&d)
        value = index(value)
        if value < 0 or value >> 8 * size:
            raise StateError(f"{value:#x} does not fit a store of {size} bytes")
        stored = value.to_bytes(size, "little")
        memcpy(&d.bytes[0], <const char *> stored, size)
        self.v.c.kernel_accesses += 1
        return self._came(&d)

    cdef _begin(self, Data *d):
        if not data_size(d.size):
            raise StateError(f"an access of {d.size} bytes; give 1, 2, 4, 8 or 16")
        self._guest_runs()
        self._canonical(d.la)
        self._canonical(d.la + d.size - 1)

    cdef _came(self, Data *d):
        cdef int outcome
        with nogil:
            outcome = data_access(self.v, d) if self.vcpu.irq == NULL else irq_data(self.vcpu.irq, d)
        if outcome == DONE_OK:
            return Access(self._gpa(d.hpa), None, None)
        if outcome == DONE_EMULATED:
            return Access(None if d.emulated == ONES else int(d.emulated), None, None)
        if outcome == DONE_PF:
            return Access(None, self.v.error_code, self.v.cr2)
        if outcome == DONE_ABORT:
            self._raise(0)
        raise StateError(f"linear address {d.la:#x} is not canonical")

    cdef _gpa(self, uint64_t hpa):
        cdef int i
        cdef Memslot *slot
        for i in range(self.kvm.mmu.slots.n):
            slot = &self.kvm.mmu.slots.slot[i]
            if hpa - slot.hpa < slot.npages << 12:
                return int((slot.base_gfn << 12) + (hpa - slot.hpa))
        return int(hpa - self.loop.guest_base)

    cdef _canonical(self, uint64_t la):
        # the TLB looks at bits 56:12 only: what is not canonical must not reach it
        if not reachable(la, self.v.hw.la_bits):
            raise StateError(f"linear address {la:#x} is not canonical" if self.v.hw.la_bits > 32 else
                             f"linear address {la:#x} does not fit the 32 bits of this paging mode")

    def exit_instruction(self, reason):
        """An instruction that exits unconditionally, such as CPUID (10) or OUT (30); `reason`: basic exit reason."""
        self._guest_runs()
        if exit_instruction(self.loop, word(reason, "reason")) != DONE_OK:
            self._raise(0)

    def invlpg(self, la):
        """INVLPG by the guest."""
        cdef int outcome
        self._guest_runs()
        outcome = vcpu_invlpg(self.v, word(la, "la"))
        if outcome != DONE_OK:
            self._raise(0)
