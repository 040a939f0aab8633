"""The virtual APIC of one vCPU, for Python: `VirtualApic`."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.cpu.vapic cimport (
    LINEAR_FETCH, PHYSICAL_EVENT, PHYSICAL_OTHER, VAPIC_DONE, VAPIC_GP, VAPIC_PASS, VAPIC_TRAP, Vapic, vapic_deliver,
    vapic_entered, vapic_modify, vapic_other, vapic_posted, vapic_rdmsr, vapic_read, vapic_read_cr8, vapic_write,
    vapic_write_cr8, vapic_wrmsr,
)

from fastmmu.errors import StateError
from fastmmu.exits import ExitReason


class ApicOutcome(NamedTuple):
    """What an operation on the virtual APIC ended in.

    kind: ``"done"`` (`data`: what it read), ``"exit"`` (`reason`, `qualification`; `trap`: after the operation),
    ``"fault"`` (#GP(0): `vector` 13) or ``"not virtualized"``.
    """

    kind: str
    data: int | None = None
    reason: ExitReason | None = None
    qualification: int = 0
    trap: bool = False
    vector: int | None = None


cdef class VirtualApic:
    """The virtual APIC of one vCPU: controls, virtual-APIC page, and the state that the processor keeps beside it.

    Operations return :class:`ApicOutcome` and change :attr:`page` (4096 bytes) in place. Controls are named after those
    of the VMCS; `threshold` is 4 bits, `eoi_exit_bitmap` 256 bits, `rvi`, `svi`, `vppr` 8 bits. Rules: SDM volume 3,
    "APIC virtualization and virtual interrupts".

    :raises StateError: a value outside these.
    """

    cdef Vapic apic
    cdef readonly object page
    cdef uint8_t[::1] view

    def __init__(self, *, bint tpr_shadow=True, bint virtualize_accesses=False, bint x2apic=False,
                 bint register_virtualization=False, bint interrupt_delivery=False,
                 bint interrupt_window_exiting=False, bint cr8_load_exiting=False, bint cr8_store_exiting=False,
                 unsigned int threshold=0, eoi_exit_bitmap=0, uint8_t rvi=0, uint8_t svi=0, uint8_t vppr=0, page=None):
        cdef Vapic *a = &self.apic
        if threshold > 15 or not 0 <= eoi_exit_bitmap < 1 << 256:
            raise StateError(f"threshold={threshold} has 4 bits, eoi_exit_bitmap={eoi_exit_bitmap:#x} has 256")
        self.page = bytearray(4096) if page is None else page
        self.view = self.page
        if self.view.shape[0] != 4096:
            raise StateError(f"a virtual-APIC page has 4096 bytes, not {self.view.shape[0]}")
        a.page = &self.view[0]
        a.tpr_shadow, a.accesses, a.x2apic = tpr_shadow, virtualize_accesses, x2apic
        a.registers, a.delivery = register_virtualization, interrupt_delivery
        a.window_exiting = interrupt_window_exiting
        a.cr8_load_exiting, a.cr8_store_exiting, a.threshold = cr8_load_exiting, cr8_store_exiting, threshold
        a.rvi, a.svi, a.vppr, a.pending = rvi, svi, vppr, False
        for i in range(4):
            a.eoi_exit[<int> i] = eoi_exit_bitmap >> 64 * i & 0xFFFFFFFFFFFFFFFF

    @property
    def rvi(self):
        """Requesting virtual interrupt."""
        return self.apic.rvi

    @property
    def svi(self):
        """Servicing virtual interrupt."""
        return self.apic.svi

    @property
    def vppr(self):
        """Virtual processor priority."""
        return self.apic.vppr

    @property
    def pending(self):
        """Is a virtual interrupt recognized?"""
        return bool(self.apic.pending)

    cdef _outcome(self, int outcome, bint reads):
        cdef Vapic *a = &self.apic
        if outcome == VAPIC_DONE:
            return ApicOutcome("done", a.data if reads else None)
        if outcome == VAPIC_GP:
            return ApicOutcome("fault", vector=13)
        if outcome == VAPIC_PASS:
            return ApicOutcome("not virtualized")
        return ApicOutcome("exit", None, ExitReason(a.reason), a.qualification, outcome == VAPIC_TRAP)

    def read_cr8(self, unsigned int register=0):
        return self._outcome(vapic_read_cr8(&self.apic, register & 15), True)

    def write_cr8(self, uint64_t value, unsigned int register=0):
        return self._outcome(vapic_write_cr8(&self.apic, value, register & 15), False)

    def read(self, unsigned int offset, unsigned int size=4, *, bint event=False):
        """A data read of `size` bytes by linear address; `event`: during event delivery."""
        return self._outcome(vapic_read(&self.apic, offset, _size(size), event), True)

    def write(self, unsigned int offset, unsigned int size, uint64_t value, *, bint event=False):
        """A data write of `size` bytes by linear address."""
        return self._outcome(vapic_write(&self.apic, offset, _size(size), value, event), False)

    def modify(self, unsigned int offset, unsigned int size, uint64_t value):
        """A read-modify-write that stores `value`."""
        return self._outcome(vapic_modify(&self.apic, offset, _size(size), value), True)

    def fetch(self, unsigned int offset):
        return self._outcome(vapic_other(&self.apic, offset, LINEAR_FETCH), False)

    def physical(self, unsigned int offset, *, bint event=False):
        """An access by guest-physical address, such as that of a page walk."""
        return self._outcome(vapic_other(&self.apic, offset, PHYSICAL_EVENT if event else PHYSICAL_OTHER), False)

    def rdmsr(self, unsigned int msr):
        return self._outcome(vapic_rdmsr(&self.apic, msr), True)

    def wrmsr(self, unsigned int msr, uint64_t value):
        return self._outcome(vapic_wrmsr(&self.apic, msr, value), False)

    def deliver(self):
        """Deliver the virtual interrupt that is requested, :attr:`rvi`, as where it is recognized; its vector.

        :raises StateError: none is requested.
        """
        if not self.apic.rvi:
            raise StateError(
                "no virtual interrupt is requested (rvi=0); ask for one first: take_posted(), a self-IPI, "
                "VirtualApic(rvi=)"
            )
        return vapic_deliver(&self.apic)

    def entered(self):
        """VM entry has loaded the state; does a TPR-below-threshold exit follow at once?"""
        return vapic_entered(&self.apic)

    def take_posted(self, uint64_t[::1] descriptor not None):
        """The notification vector arrived: the requests of the descriptor (8 qwords) move into IRR."""
        if descriptor.shape[0] != 8:
            raise StateError(f"a posted-interrupt descriptor has 8 qwords, not {descriptor.shape[0]}")
        vapic_posted(&self.apic, &descriptor[0])


cdef unsigned int _size(unsigned int size) except 0:
    if size not in (1, 2, 4, 8, 16):
        raise StateError(f"an access of {size} bytes; give 1, 2, 4, 8 or 16")
    return size
