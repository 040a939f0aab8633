"""Look at memory through page tables that nobody named: python examples/spaces.py [IMAGE]"""

from __future__ import annotations

import sys

import numpy as np

from fastmmu import AddressSpace, NotMappedError, PhysicalMemory, find_roots

USER, KERNEL, NX = 0x67, 0x63, 1 << 63


def two_processes() -> PhysicalMemory:
    """Roots at 1000 and 2000 with one kernel half, page tables at 5000 and 6000, pages from 10000 on."""
    memory = PhysicalMemory(1 << 20)
    memory.u8[0x1_0000:0x1_3000] = np.arange(3 * 4096) // 4096 + ord("a")
    for root, pdpt, directory, table in ((0x1000, 0x7000, 0x9000, 0x5000), (0x2000, 0x8000, 0xA000, 0x6000)):
        for at, below in ((root, pdpt), (pdpt, directory), (directory, table)):
            memory.write64(at, below | USER)
        memory.write64(root + 8 * 256, 0x3000 | KERNEL)
        memory.write64(table, 0x1_0000 | USER | NX)  # both have page a
    for at, below in ((0x3000, 0x4000), (0x4000, 0xB000), (0xB000, 0x1_4000)):
        memory.write64(at, below | KERNEL)  # code of the kernel
    memory.write64(0x5008, 0x1_1000 | USER | NX)  # page b, of the first alone
    return memory


def main() -> None:
    memory = two_processes()
    first, second = (AddressSpace(memory, root.state()) for root in find_roots(memory, kinds=["4-level"]))
    print(f"roots: {first.state.cr3:x} and {second.state.cr3:x}")

    # Bytes at linear addresses, over page borders. What is not there has a name and a cause.
    print(f"read: {first.read(0xFFE, 4)!r}")
    try:
        second.read(0xFFE, 4)
    except NotMappedError as error:
        hole = error.holes[0]
        print(f"hole: {hole.start:x}, {hole.length} bytes; padded: {second.read(0xFFE, 4, pad=0)!r}")
    print(f"many: {first.read_many([0, 0x1000], 2).tobytes()!r}")

    # Who maps a physical page, in each space.
    print(f"where: {[[hex(row.va) for row in space.where(0x1_0000)] for space in (first, second)]}")

    # Two spaces, or two looks at one, side by side.
    changed = first.diff(second)
    print(f"diff: {changed}, {changed.gone.va[0]:x} is gone")

    # Rights are left aside unless one is asked for: user pages are there for a kernel with SMAP, too.
    print(f"translate: {first.translate([0, 0x1000, 0x2000]).fault.tolist()}")
    print(f"to execute: {first.translate([0, 0x1000, 0x2000], access='x').fault.tolist()}")


def of_image(path: str) -> None:
    """Of an image, with the registers that it holds, else those of the likeliest root."""
    from fastmmu.image import open_image

    image = open_image(path)
    state = image.state() if image.cpus else find_roots(image.memory)[0].state()
    rows = AddressSpace(image.memory, state).mappings()
    print(f"{image.format}, CR3 {state.cr3:x}: {len(rows):,} pages")


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else of_image(sys.argv[1])
