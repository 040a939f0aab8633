"""Build page tables in memory, translate through them, and look at every reference: python examples/walk.py"""

from __future__ import annotations

from fastmmu import GuestState, PhysicalMemory, walk
from fastmmu.report import walkview

READ_WRITE_USER = 0x67  # P, R/W, U/S, A, D


def main() -> None:
    # Guest tables at 1000, 2000, 3000, 4000 map the linear address 8040201000 to the frame 9000.
    memory = PhysicalMemory(1 << 20)
    for table, target in ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4000, 0x9000)):
        memory.write64(table + 8, target | READ_WRITE_USER)
    state = GuestState(cr3=0x1000, cpl=3)

    found = walk(memory, state, 0x80_4020_1ABC)
    print("\n".join(walkview.steps(found)))
    print(f"{found.la:#x} -> {found.pa:#x} in {found.guest_refs} references\n")

    # Without the R/W bit at one level a write of user mode faults, whatever the other levels say.
    memory.write64(0x3008, 0x4000 | READ_WRITE_USER & ~2)
    for access in ("r", "w"):
        found = walk(memory, state, 0x80_4020_1ABC, access=access)
        print(access, "->", "; ".join(walkview.outcome(found, state, ept=False)))


if __name__ == "__main__":
    main()
