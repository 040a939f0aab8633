"""Registers in the notes of ELF cores and kdumps: QEMU's, VirtualBox's, and what Linux says of itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fastmmu.image.layout import Layout

__all__ = ["add_notes", "add_vmcoreinfo", "is_process"]

NT_PRPSINFO, NT_AUXV, NT_FILE = 3, 6, 0x46494C45
_QEMU_SIZE = 440
_VBOX_MAGIC = 0xC01AC0DE
_KERNEL = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map of Linux
_LONG, _NXE, _LA57 = 0x500, 0x800, 1 << 12
_CR0 = 0x8005_0033
_CR4 = 0xA0


def notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, content); what is cut off is not among them."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        content = at + 12 + (name_size + 3) // 4 * 4
        end = content + size
        if end > len(data):
            return
        yield data[at + 12 : at + 12 + name_size].rstrip(b"\0"), kind, data[content:end]
        at = content + (size + 3) // 4 * 4


def is_process(data: bytes) -> bool:
    """The core of a process: addresses are its own, not physical ones."""
    return any(name == b"CORE" and kind in (NT_AUXV, NT_FILE) for name, kind, _ in notes(data))


def add_notes(layout: Layout, data: bytes) -> None:
    """What the notes say: `cpus` and `info` of the layout. Notes of QEMU come before what Linux says of itself."""
    vmcoreinfo = b""
    for name, kind, content in notes(data):
        if name == b"QEMU" and kind == 0 and len(content) >= _QEMU_SIZE:
            layout.cpus.append(_qemu(content))
            layout.info["registers"] = "QEMU's notes"
        elif name == b"VBCORE" and content[:4] == struct.pack("<I", _VBOX_MAGIC):
            layout.info["registers"] = "VirtualBox's notes"
        elif name == b"VBCPU" and len(content) >= 496:
            cr0, _, cr3, cr4 = struct.unpack_from("<4Q", content, 288)
            (efer,) = struct.unpack_from("<Q", content, 488)
            layout.cpus.append({"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer})
        elif name == b"VMCOREINFO":
            vmcoreinfo = content
    add_vmcoreinfo(layout, vmcoreinfo)


def _qemu(note: bytes) -> dict[str, int]:
    # EFER is not among them. LMA: code of 64 bits, or an address that only long mode has.
    rip = struct.unpack_from("<Q", note, 8 + 16 * 8)[0]
    flags = struct.unpack_from("<I", note, 152 + 8)[0]
    cr = struct.unpack_from("<5Q", note, 392)
    bases = [struct.unpack_from("<Q", note, 152 + 24 * i + 16)[0] for i in range(10)]
    (kernel_gs,) = struct.unpack_from("<Q", note, 432)
    wide = any(value >> 32 for value in (rip, cr[3], kernel_gs, *bases))
    long = cr[0] >> 31 & 1 and cr[4] >> 5 & 1 and (flags >> 21 & 1 or wide)
    efer = (_LONG if long else 0) | (_NXE if cr[4] >> 5 & 1 else 0)
    return {"cr0": cr[0], "cr3": cr[3], "cr4": cr[4], "efer": efer}


def add_vmcoreinfo(layout: Layout, text: bytes) -> None:
    """What Linux says: the kernel's own tables, where no CPU's registers are known."""
    for line in text.decode("ascii", "replace").splitlines():
        key, equal, value = line.partition("=")
        if equal:
            layout.info[key] = value
    root = layout.info.get("SYMBOL(swapper_pg_dir)", layout.info.get("SYMBOL(init_top_pgt)"))
    base = layout.info.get("NUMBER(phys_base)")
    if layout.cpus or root is None or base is None:
        return
    try:
        cr3 = (int(root, 16) - _KERNEL + int(base)) & 0xF_FFFF_FFFF_F000
        five = int(layout.info.get("NUMBER(pgtable_l5_enabled)", "0"))
    except ValueError:
        return
    layout.cpus.append({"cr0": _CR0, "cr3": cr3, "cr4": _CR4 | (_LA57 if five else 0), "efer": _LONG | _NXE | 1})
    layout.info["registers"] = "VMCOREINFO: the kernel's own tables (swapper_pg_dir)"
