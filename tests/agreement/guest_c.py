"""Guest C: the local APIC and the TPR, in 52 phases. What it does is `guest_c.c` beside the recordings."""

from __future__ import annotations

from .apic import ApicGuest as Guest
from .guest import Layout
from .guest_a import LAYOUT as LAYOUT_A

__all__ = ["LAYOUT", "Guest", "run"]

LAYOUT = Layout(
    memory=LAYOUT_A.memory,
    slots=(),
    state=LAYOUT_A.state,
    words=LAYOUT_A.words,
    loaded=LAYOUT_A.loaded,
    code=LAYOUT_A.code,
    stack=LAYOUT_A.stack,
    handler=LAYOUT_A.handler,
    idt=LAYOUT_A.idt,
    gdt=LAYOUT_A.gdt,
)

SPACE = 0x10_0000
LOG = 0x3_0000
TPR, EOI, SVR, ICR = 0x80, 0xB0, 0xF0, 0x300
APIC_BASE, X2_TPR, X2_EOI, X2_SELF_IPI = 0x1B, 0x808, 0x80B, 0x83F
SELF = 0x4_0000  # shorthand


def build(g: Guest) -> None:
    """The tables, and the pages that interrupts need."""
    g.write(SPACE, SPACE + 0x1000 | 3)
    g.write(SPACE + 0x1000, SPACE + 0x2000 | 3)
    g.write(SPACE + 0x1000 + 24, SPACE + 0xA000 | 3)
    g.write(SPACE + 0x2000, 0x83)
    g.write(SPACE + 0xA000 + 8 * 503, SPACE + 0xB000 | 3)
    g.write(SPACE + 0xB000, 0xFEE0_001B)
    g.mov_cr3(SPACE)
    g.write(LOG + 16, 0)
    g.write(LOG, 0)
    g.read(0x5000)
    g.read(0x6000)


def run(g: Guest) -> None:
    def tpr(value: int) -> None:
        g.step = 0x1000 | value
        g.apic_write(TPR, value)

    def cr8(value: int) -> None:
        g.step = 0x2000 | value
        g.mov_cr8(value)

    def wrmsr(msr: int, value: int) -> None:
        g.step = 0x4000 | value
        g.wrmsr(msr, value)

    def tprs(*classes: int) -> None:
        for each in classes:
            tpr(each << 4)

    def cr8s(*classes: int) -> None:
        for each in classes:
            cr8(each)

    up, down, lower = range(16), range(15, -1, -1), range(14, -1, -1)
    g.push()
    g.mark()
    build(g)
    g.apic_write(SVR, 0x1FF)
    tpr(0)
    g.apic_read(TPR)
    g.read_cr8()
    g.mark()
    tprs(*up), g.mark()
    tprs(*down), g.mark()
    cr8s(*up), g.mark()
    cr8s(*down), g.mark()
    tprs(*(15, 0) * 32), g.mark()
    cr8s(*(15, 0) * 32), g.mark()
    # IF = 1, 51H pending and masked by the TPR
    cr8(15), g.sti(), g.inject(0x51), g.mark()
    for _ in range(16):
        g.apic_read(TPR)
    g.mark()
    for _ in range(16):
        g.read_cr8()
    g.mark()
    tprs(*range(14, 5, -1)), g.mark()
    tprs(*range(7, 16)), g.mark()
    cr8s(*range(14, 5, -1)), g.mark()
    cr8s(*range(7, 16)), g.mark()
    tpr(0x5F), tpr(0x50), g.mark()
    tpr(0x40), g.mark()
    tpr(0), tpr(0xF0), g.mark()
    g.inject(0x51), cr8s(*lower), g.mark()
    for _ in range(16):
        cr8(15), g.inject(0x51), cr8(0)
    g.mark()
    for _ in range(16):
        tpr(0xF0), g.inject(0x51), tpr(0)
    g.mark()
    cr8(15), g.inject(0x51), cr8s(*(6, 15) * 32), g.mark()
    tprs(*(6, 15) * 32), g.mark()
    cr8(0), g.mark()
    # two pending vectors
    cr8(15), g.inject(0x51), g.inject(0x81), cr8s(*lower), g.mark()
    cr8(15), g.inject(0x51), g.inject(0x81), tprs(*lower), g.mark()
    # IF = 0
    g.cli(), cr8(15), g.inject(0x51), cr8s(*lower), g.mark()
    cr8s(*up), g.mark()
    cr8s(*lower), g.mark()
    tprs(*up), g.mark()
    tprs(*lower), g.mark()
    g.sti(), g.mark()
    g.cli(), g.inject(0x51), g.apic_read(TPR), g.read_cr8(), cr8s(*up), cr8s(*lower), g.mark()
    g.sti(), g.mark()
    # IF = 1, TPR = 0: delivery at once
    for _ in range(16):
        g.inject(0x51)
    g.mark()
    for _ in range(16):
        g.apic_write(ICR, SELF | 0x61)
    g.mark()
    for _ in range(16):
        cr8(15), g.apic_write(ICR, SELF | 0x61), cr8(0)
    g.mark()
    for _ in range(16):
        tpr(0xF0), g.apic_write(ICR, SELF | 0x61), tpr(0)
    g.mark()
    for _ in range(16):
        g.apic_write(EOI, 0)
    g.mark()
    for _ in range(16):
        for offset in (0x20, 0xA0, 0x100, 0x200):
            g.apic_read(offset)
    g.mark()
    cr8(6), g.inject(0x51), g.inject(0x81), g.mark()
    cr8(0), g.mark()
    # x2APIC mode
    g.cli(), wrmsr(APIC_BASE, 0xFEE0_0D00), g.mark()
    for each in up:
        wrmsr(X2_TPR, each << 4)
    g.mark()
    for each in down:
        wrmsr(X2_TPR, each << 4)
    g.mark()
    for _ in range(16):
        g.rdmsr(X2_TPR)
    g.mark()
    g.sti(), wrmsr(X2_TPR, 0xF0), g.inject(0x51)
    for each in (6, 15) * 32:
        wrmsr(X2_TPR, each << 4)
    g.mark()
    for each in lower:
        wrmsr(X2_TPR, each << 4)
    g.mark()
    for _ in range(16):
        wrmsr(X2_SELF_IPI, 0x61)
    g.mark()
    for _ in range(16):
        wrmsr(X2_TPR, 0xF0), wrmsr(X2_SELF_IPI, 0x61), wrmsr(X2_TPR, 0)
    g.mark()
    for _ in range(16):
        cr8(15), g.inject(0x51), cr8(0)
    g.mark()
    for _ in range(16):
        wrmsr(X2_EOI, 0)
    g.mark()
