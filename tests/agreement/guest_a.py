"""Guest A: memory, in 42 phases. What it does is `guest_a.c` beside the recordings; names are those of that file."""

from __future__ import annotations

from fastmmu import MemorySlot

from .guest import Guest, Layout


def _words() -> dict[int, int]:
    """The loader's tables: 64 MB, linear = physical, in 2 MB pages."""
    words = {0x1000: 0x2003, 0x2000: 0x3003}
    words.update({0x3000 + 8 * i: i << 21 | 0x83 for i in range(32)})
    return words


LAYOUT = Layout(
    memory=0x400_0000,
    slots=(MemorySlot(0x800_0000, 0x1_0000, readonly=True),),
    state={"cr0": 0x8001_0033, "cr4": 0xA0, "efer": 0x500, "cr3": 0x1000, "maxphyaddr": 46},
    words=_words(),
    loaded=(1, 2, 3, 4, 5, 6, 16),
    code=0x1_0000,
    stack=0x2_1000,
    handler=0x1_0010,
    idt=0x6000,
    gdt=0x5000,
)

WINDOW = 0x4000_0000
APIC_TPR = 0xFEE0_0080


def space(k: int) -> int:
    return 0x10_0000 + k * 0x1_0000


def pte(k: int, i: int) -> int:
    """Address of the window's i-th page-table entry in space k."""
    return space(k) + 0x4000 + 8 * i


def frame(k: int, i: int) -> int:
    return 0x100_0000 + k * 0x80_0000 + i * 4096


def va(i: int) -> int:
    return WINDOW + i * 4096


def run(g: Guest) -> None:
    def rd(start: int, n: int) -> None:
        with g.call():
            for i in range(n):
                g.read(start + 4096 * i)

    def wr(start: int, n: int, step: int = 4096) -> None:
        with g.call():
            for i in range(n):
                g.write(start + step * i, start + step * i)

    def page_fault(cr2: int) -> None:
        for _ in range(9):
            g.push()
        with g.call():
            i = cr2 - WINDOW >> 12
            entry = g.read(pte(0, i)) or 0
            g.write(pte(0, i), entry | 2 if entry & 1 else frame(0, i) | 3)
        for _ in range(9):
            g.pop()
        g.rsp += 8  # past the error code

    g.on_page_fault = page_fault
    for _ in range(6):  # the registers that entry() saves
        g.push()
    g.mark()  # ends phase 0
    for k in range(4):
        build(g, k)
    g.mark()
    g.mov_cr3(space(0))
    g.mark()
    rd(va(0), 1024)
    g.mark()
    rd(va(0), 1024)
    g.mark()
    wr(va(0), 1024)
    g.mark()
    wr(va(0), 1024)
    g.mark()
    for k in range(1, 5):
        g.mov_cr3(space(k & 3))
        rd(va(0), 16)
    g.mark()
    for k in range(64):
        g.mov_cr3(space(k + 1 & 3))
        rd(va(0), 16)
    g.mark()
    rd(va(1024), 64)
    g.mark()
    for i in range(1024, 1088):
        g.write(pte(0, i), frame(0, i + 64) | 3)
        g.invlpg(va(i))
        rd(va(i), 1)
    g.mark()
    for i in range(1024, 1088):
        g.invlpg(va(i))
        rd(va(i), 1)
    g.mark()
    for i in range(1024, 1088):
        g.write(pte(0, i), 0)
        g.invlpg(va(i))
    g.mark()
    for i in range(1024, 1088):
        g.write(pte(0, i), frame(0, i) | 3)
        rd(va(i), 1)
    g.mark()
    for i in range(1024, 1088):
        g.write(pte(0, i), frame(0, i) | 0x63)
    g.mark()
    rd(va(1536), 64)
    g.mark()
    for _ in range(32):
        g.mov_cr3(space(0))
    g.mark()
    cr4 = g.read_cr4()
    for _ in range(8):
        g.mov_cr4(cr4 & ~0x80)
        g.mov_cr4(cr4 | 0x80)
    g.mark()
    rd(va(0), 1024)
    end_and_log(g, start=True)  # ends phase 18
    log_phases(g, wr, rd)
    devices(g, wr, rd)
    late(g, wr, rd)


def build(g: Guest, k: int) -> None:
    """The tables of address space k."""
    base = space(k)
    g.write(base, base + 0x1000 | 3)
    for i, table in enumerate((0x2000, 0x3000, 0x8000, 0xA000)):
        g.write(base + 0x1000 + 8 * i, base + table | 3)
    g.write(base + 0x2000, 0x83)
    for i in range(4):
        g.write(base + 0x3000 + 8 * i, base + 0x4000 + i * 0x1000 | 3)
    for i in range(1536):
        g.write(pte(k, i), frame(k, i) | 3)
    g.write(base + 0x8000, base + 0x9000 | 3)
    for i in range(16):
        g.write(base + 0x9000 + 8 * i, 0x1000_0000 + i * 4096 | 3)
        g.write(base + 0x9000 + 8 * (256 + i), 0x800_0000 + i * 4096 | 3)
    g.write(base + 0xA000 + 8 * 503, base + 0xB000 | 3)
    g.write(base + 0xB000, 0xFEE0_0000 | 0x1B)


def end_and_log(g: Guest, *, start: bool = False, stop: bool = False) -> None:
    """The end of a phase, after which the host fetches the dirty log of slot 0."""

    def host() -> None:
        if start:
            g.start_dirty_log(0)
        g.get_dirty_log(0)
        if stop:
            g.stop_dirty_log(0)

    g.mark(host)


def log_phases(g: Guest, wr, rd) -> None:  # type: ignore[no-untyped-def]
    wr(va(0), 512)
    end_and_log(g)
    wr(va(0), 512)
    end_and_log(g)
    wr(va(0), 512)
    g.mark()  # the log is not fetched after 21
    wr(va(0), 512)
    end_and_log(g)
    wr(va(0), 64, 8 * 4096)
    end_and_log(g)
    rd(va(0), 1024)
    end_and_log(g)
    wr(va(512), 512)
    end_and_log(g, stop=True)
    wr(va(0), 512)
    g.mark()


def devices(g: Guest, wr, rd) -> None:  # type: ignore[no-untyped-def]
    rd(0x8000_0000, 16)
    g.mark()
    rd(0x8000_0000, 16)
    g.mark()
    wr(0x8000_0000, 16)
    g.mark()
    rd(0x8010_0000, 16)
    g.mark()
    wr(0x8010_0000, 16)
    g.mark()
    for _ in range(32):
        g.cpuid()
    g.mark()
    for i in range(32):
        g.write(APIC_TPR, (i & 15) << 4)
    g.mark()
    for _ in range(32):
        g.read(APIC_TPR)
    g.mark()
    for i in range(32):
        g.mov_cr8(i & 15)
    g.mark()
    for _ in range(32):
        g.read_cr8()
    g.mov_cr8(0)
    g.mark(lambda: g.delete_slot(1))


def late(g: Guest, wr, rd) -> None:  # type: ignore[no-untyped-def]
    rd(va(0), 1024)
    g.mark()
    for i in range(1536):
        g.write(pte(3, i), 0)
    g.mark()
    for i in range(256):
        entry = g.read(pte(0, i)) or 0
        g.write(pte(0, i), entry & ~2)
    g.mov_cr3(space(0))
    g.mark()
    wr(va(0), 256)
    g.mark()
    wr(va(0), 256)
    g.mark()
