"""ELF cores of machines: QEMU's dump-guest-memory, libvirt's --memory-only, /proc/vmcore, makedumpfile -E, VirtualBox.

The table of program headers is an array at `e_phoff`, wherever that is (QEMU has it behind a section header); it is
read as one, for what is asked of it is places in the file, and there may be 65,000.
"""

from __future__ import annotations

import numpy as np

from fastmmu.image.layout import ZERO, Layout
from fastmmu.image.notes import add_notes, is_process
from fastmmu.image.source import Source

__all__ = ["read"]

PT_LOAD, PT_NOTE = 1, 4
PN_XNUM = 0xFFFF
NO_ADDRESS = 1 << 52
"""Of /proc/kcore: a segment from here on has no physical address."""

PHDR = np.dtype(
    [("type", "<u4"), ("flags", "<u4"), ("offset", "<u8"), ("va", "<u8"), ("pa", "<u8"), ("filesz", "<u8"),
     ("memsz", "<u8"), ("align", "<u8")]
)  # fmt: skip


def read(source: Source) -> Layout:
    """The PT_LOAD segments, and registers from the notes.

    What a segment has in memory and not in the file is zero, but for cores of QEMU: there it is memory of another
    block, which the core may have elsewhere or not at all. Bytes of the file come before zeros.
    """
    phoff, shoff = source.fields("<QQ", 32)
    entsize, count = source.fields("<HH", 54)
    if count == PN_XNUM:
        (count,) = source.fields("<I", shoff + 44)  # sh_info of section 0
    if entsize != PHDR.itemsize:
        raise source.wrong(f"program headers of {entsize} bytes; those of ELF64 have {PHDR.itemsize}")
    headers = np.frombuffer(source.bytes_at(phoff, count * entsize), PHDR)
    layout = Layout()
    notes = [(int(row["offset"]), int(row["filesz"])) for row in headers[headers["type"] == PT_NOTE]]
    if sum(size for _, size in notes) > source.size:
        raise source.wrong(f"its notes have {sum(size for _, size in notes)} bytes, and all of it {source.size}")
    data = b"".join(source.bytes_at(offset, size) for offset, size in notes)
    if is_process(data):
        raise source.wrong("this is the core of a process, whose addresses are not physical; dump the machine's memory")
    add_notes(layout, data)
    qemu = layout.info.get("registers") == "QEMU's notes"
    loads = headers[(headers["type"] == PT_LOAD) & (headers["pa"] < NO_ADDRESS)]
    if len(loads) > 1 and not loads["pa"].any():
        raise source.wrong("no segment has a physical address (p_paddr is 0 in all): this is no core of a machine")
    for row in loads:
        layout.add(int(row["pa"]), int(row["filesz"]), int(row["offset"]))
    for row in loads if not qemu else ():
        layout.add(int(row["pa"]) + int(row["filesz"]), int(row["memsz"]) - int(row["filesz"]), ZERO)
    return layout
