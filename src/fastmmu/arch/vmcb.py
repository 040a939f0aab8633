"""The fields of a VMCB, by their offset (APM volume 2, appendix B): those that the model has a use for."""

from __future__ import annotations

from fastmmu.errors import Code, Flags

__all__ = ["Intercept1", "Intercept3", "TlbControl", "VIntr", "VmcbField"]


class VmcbField(Code):
    """Fields of a VMCB: the names of the APM, their offset in bytes; the state-save area begins at 400H."""

    INTERCEPT_CR = 0x000  # reads of CR0 to CR15 in bits 15:0, writes in bits 31:16
    INTERCEPT_EXCEPTIONS = 0x008
    INTERCEPT_1 = 0x00C  # Intercept1
    INTERCEPT_3 = 0x014  # Intercept3
    GUEST_ASID = 0x058
    TLB_CONTROL = 0x05C  # TlbControl
    V_INTR = 0x060  # VIntr
    EXITCODE = 0x070
    EXITINFO1 = 0x078
    EXITINFO2 = 0x080
    EXITINTINFO = 0x088
    NP_ENABLE = 0x090
    N_CR3 = 0x0B0
    EFER = 0x4D0
    CR4 = 0x548
    CR3 = 0x550
    CR0 = 0x558
    RFLAGS = 0x570
    CR2 = 0x640
    G_PAT = 0x668

    @property
    def width(self) -> int:
        """In bits."""
        return _WIDTHS.get(self, 64)


_WIDTHS = {VmcbField.TLB_CONTROL: 8} | dict.fromkeys(
    (VmcbField.INTERCEPT_CR, VmcbField.INTERCEPT_EXCEPTIONS, VmcbField.INTERCEPT_1, VmcbField.INTERCEPT_3,
     VmcbField.GUEST_ASID), 32)  # fmt: skip


class TlbControl(Code):
    """What VMRUN flushes (APM vol. 2, 15.16.2)."""

    DO_NOTHING = 0
    FLUSH_ALL_ASID = 1
    FLUSH_ASID = 3
    FLUSH_ASID_LOCAL = 7  # but global mappings


class Intercept1(Flags):
    """Bits of INTERCEPT_1."""

    INTR = 1 << 0
    VINTR = 1 << 4
    CR0_SEL_WRITE = 1 << 5
    CPUID = 1 << 18
    HLT = 1 << 24
    INVLPG = 1 << 25
    INVLPGA = 1 << 26
    IOIO_PROT = 1 << 27
    MSR_PROT = 1 << 28
    SHUTDOWN = 1 << 31


class Intercept3(Flags):
    """Bits of INTERCEPT_3."""

    INVLPGB = 1 << 0
    INVLPGB_ILLEGAL = 1 << 1
    INVPCID = 1 << 2
    TLBSYNC = 1 << 4


class VIntr(Flags):
    """Bits of V_INTR; V_TPR in bits 7:0, V_INTR_PRIO in 19:16, V_INTR_VECTOR in 39:32."""

    V_IRQ = 1 << 8
    V_IGN_TPR = 1 << 20
    V_INTR_MASKING = 1 << 24
