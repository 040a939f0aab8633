"""The virtual APIC of one vCPU, for Python: `VirtualApic`."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu._arguments cimport aligned, bytes_out, flag, shown, whole, within, word, words_out
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

    Threads: each call is one step; who needs several to belong together locks them.
    """

    cdef Vapic apic
    cdef readonly object page
    cdef uint8_t[::1] view

    def __cinit__(self, *, tpr_shadow=True, virtualize_accesses=False, x2apic=False, register_virtualization=False,
                  interrupt_delivery=False, interrupt_window_exiting=False, cr8_load_exiting=False,
                  cr8_store_exiting=False, threshold=0, eoi_exit_bitmap=0, rvi=0, svi=0, vppr=0, page=None):
        cdef Vapic *a = &self.apic
        bitmap = whole("eoi_exit_bitmap", eoi_exit_bitmap)
        if not 0 <= bitmap < 1 << 256:
            raise StateError(f"eoi_exit_bitmap={shown(bitmap)} does not fit 256 bits")
        self.page = bytearray(4096) if page is None else page
        self.view = bytes_out("page", self.page)
        if self.view.shape[0] != 4096:
            raise StateError(f"a virtual-APIC page has 4096 bytes, not {self.view.shape[0]}")
        aligned("page", &self.view[0], StateError)
        a.page = &self.view[0]
        a.tpr_shadow, a.accesses = flag("tpr_shadow", tpr_shadow), flag("virtualize_accesses", virtualize_accesses)
        a.x2apic, a.registers = flag("x2apic", x2apic), flag("register_virtualization", register_virtualization)
        a.delivery = flag("interrupt_delivery", interrupt_delivery)
        a.window_exiting = flag("interrupt_window_exiting", interrupt_window_exiting)
        a.cr8_load_exiting = flag("cr8_load_exiting", cr8_load_exiting)
        a.cr8_store_exiting = flag("cr8_store_exiting", cr8_store_exiting)
        a.threshold = within("threshold", threshold, 0, 15)
        a.rvi, a.svi = within("rvi", rvi, 0, 0xFF), within("svi", svi, 0, 0xFF)
        a.vppr, a.pending = within("vppr", vppr, 0, 0xFF), False
        for i in range(4):
            a.eoi_exit[<int> i] = bitmap >> 64 * i & 0xFFFFFFFFFFFFFFFF

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

    def read_cr8(self, register=0):
        """MOV from CR8 to the general register of this number, 0..15."""
        return self._outcome(vapic_read_cr8(&self.apic, within("register", register, 0, 15)), True)

    def write_cr8(self, value, register=0):
        """MOV to CR8 from the general register of this number, 0..15."""
        cdef uint64_t new = word("value", value)
        return self._outcome(vapic_write_cr8(&self.apic, new, within("register", register, 0, 15)), False)

    def read(self, offset, size=4, *, event=False):
        """A data read of `size` bytes by linear address, at an offset 0..4095; `event`: during event delivery."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF), length = _size(size)
        return self._outcome(vapic_read(&self.apic, at, length, flag("event", event)), True)

    def write(self, offset, size, value, *, event=False):
        """A data write of `size` bytes by linear address."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF), length = _size(size)
        cdef uint64_t new = word("value", value)
        return self._outcome(vapic_write(&self.apic, at, length, new, flag("event", event)), False)

    def modify(self, offset, size, value):
        """A read-modify-write that stores `value`."""
        cdef uint32_t at = within("offset", offset, 0, 0xFFF), length = _size(size)
        return self._outcome(vapic_modify(&self.apic, at, length, word("value", value)), True)

    def fetch(self, offset):
        """A fetch by linear address."""
        return self._outcome(vapic_other(&self.apic, within("offset", offset, 0, 0xFFF), LINEAR_FETCH), False)

    def physical(self, offset, *, event=False):
        """An access by guest-physical address, such as that of a page walk."""
        cdef int kind = PHYSICAL_EVENT if flag("event", event) else PHYSICAL_OTHER
        return self._outcome(vapic_other(&self.apic, within("offset", offset, 0, 0xFFF), kind), False)

    def rdmsr(self, msr):
        """RDMSR."""
        return self._outcome(vapic_rdmsr(&self.apic, within("msr", msr, 0, 0xFFFFFFFF)), True)

    def wrmsr(self, msr, value):
        """WRMSR."""
        cdef uint32_t number = within("msr", msr, 0, 0xFFFFFFFF)
        return self._outcome(vapic_wrmsr(&self.apic, number, word("value", value)), False)

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

    def take_posted(self, descriptor):
        """The notification vector arrived: the requests of the descriptor (8 qwords) move into IRR."""
        cdef uint64_t[::1] words = words_out("descriptor", descriptor)
        if words.shape[0] != 8:
            raise StateError(f"a posted-interrupt descriptor has 8 qwords, not {words.shape[0]}")
        vapic_posted(&self.apic, &words[0])


cdef uint32_t _size(object size) except 0:
    cdef uint32_t found = within("size", size, 0, 0xFFFFFFFF)
    if found not in (1, 2, 4, 8, 16):
        raise StateError(f"an access of {found} bytes; give 1, 2, 4, 8 or 16")
    return found
