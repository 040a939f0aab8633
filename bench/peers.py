"""Other packages that translate linear addresses, or count what a TLB counts, on the same memory and the same stream.

Each function makes a call from what is to be looked up; it raises ImportError where the package is not there. None is
asked more than one address in a call: it is all that their interfaces for Python offer.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.spaces import Space
from bench.yardstick import Counts

Translate = Callable[[list[int]], list[int]]


def volatility3(space: Space, where: Path) -> Translate:
    """Its layer Intel32e over a buffer."""
    layers = importlib.import_module("volatility3.framework.layers")
    contexts = importlib.import_module("volatility3.framework.contexts")
    intel = importlib.import_module(f"{layers.__name__}.intel")
    physical = importlib.import_module(f"{layers.__name__}.physical")
    context = contexts.Context()
    memory = mmap.mmap(-1, (int(space.frames.max()) + 1) << 12)  # it wants the pages to be there, too
    memory[: space.memory.nbytes] = space.memory.u8.tobytes()
    context.add_layer(physical.BufferDataLayer(context, "memory", "memory", memory))
    context.config["layer.memory_layer"] = "memory"
    context.config["layer.page_map_offset"] = space.state.cr3
    layer = intel.Intel32e(context, "layer", "layer")
    return lambda addresses: [layer.translate(one)[0] for one in addresses]


def unicorn(space: Space, where: Path) -> Translate:
    """Its processor with paging on; `uc_vmem_translate` has no wrapper in Python, so it is called by ctypes."""
    package = importlib.import_module("unicorn")
    registers = importlib.import_module("unicorn.x86_const")
    library = importlib.import_module("unicorn.unicorn_py3.unicorn").uclib
    engine = package.Uc(package.UC_ARCH_X86, package.UC_MODE_64)
    engine.mem_map(0, space.memory.nbytes)
    engine.mem_write(0, space.memory.u8.tobytes())
    engine.msr_write(0xC000_0080, 0xD00)
    engine.reg_write(registers.UC_X86_REG_CR4, 0x20)
    engine.reg_write(registers.UC_X86_REG_CR3, space.state.cr3)
    engine.reg_write(registers.UC_X86_REG_CR0, 0x8005_0033)
    call, found, handle = library.uc_vmem_translate, ctypes.c_uint64(), engine._uch
    call.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
    place, read = ctypes.byref(found), package.UC_PROT_READ

    def translate(addresses: list[int]) -> list[int]:
        results = []
        for one in addresses:
            if call(handle, one, read, place):
                raise ValueError(f"{one:#x} is not mapped")
            results.append(found.value)
        return results

    translate.engine = engine  # type: ignore[attr-defined] # it lives as long
    return translate


def drgn(space: Space, where: Path) -> Translate:
    """A core dump of a kernel with these tables; `follow_phys` for the kernel's page tables."""
    package = importlib.import_module("drgn")
    follow = importlib.import_module("_drgn")._linux_helper_follow_phys
    tables = 0xFFFF_FFFF_8000_0000 + space.state.cr3
    said = f"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={tables:x}\nNUMBER(phys_base)=0\n".encode()
    path = where / "vmcore"
    path.write_bytes(core_dump(space, said))
    program = package.Program()
    program.set_core_dump(path)
    return lambda addresses: [follow(program, tables, one) for one in addresses]


def core_dump(space: Space, vmcoreinfo: bytes) -> bytes:
    """An ELF core: the note of the kernel, and memory from physical address 0 on."""
    note = struct.pack("<III", 11, len(vmcoreinfo), 0) + b"VMCOREINFO\0\0" + vmcoreinfo
    note += b"\0" * (-len(note) % 4)
    begin = 0x1000
    assert len(note) < begin - 0x100
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = [
        struct.pack("<IIQQQQQQ", 4, 0, 0x100, 0, 0, len(note), len(note), 4),
        struct.pack("<IIQQQQQQ", 1, 4, begin, 0, 0, space.memory.nbytes, space.memory.nbytes, 0x1000),
    ]
    head = (header + b"".join(segments)).ljust(0x100, b"\0") + note
    return head.ljust(begin, b"\0") + space.memory.u8.tobytes()


def kdmp_parser(space: Space, where: Path) -> Translate:
    """A full dump of a Windows kernel: its header of 8 KB, then memory."""
    parser: Any = importlib.import_module("kdmp_parser._kdmp_parser").KernelDumpParser()
    pages = space.memory.nbytes >> 12
    header = bytearray(0x2000)
    struct.pack_into("<4s4s", header, 0, b"PAGE", b"DU64")
    struct.pack_into("<Q", header, 0x10, space.state.cr3)
    struct.pack_into("<IIQQQ", header, 0x88, 1, 0, pages, 0, pages)  # runs, pages; the one run
    struct.pack_into("<I", header, 0xF98, 1)
    path = where / "memory.dmp"
    path.write_bytes(bytes(header) + space.memory.u8.tobytes())
    if not parser.Parse(str(path)):
        raise ValueError(f"kdmp-parser does not take {path}")
    call, cr3 = parser.VirtTranslate, space.state.cr3
    return lambda addresses: [call(one, cr3) for one in addresses]


TRANSLATORS = {"kdmp-parser": kdmp_parser, "unicorn": unicorn, "drgn": drgn, "volatility3": volatility3}


def pycachesim(addresses: list[int], geometry: tuple[int, int, int, int]) -> Callable[[], Counts]:
    """Two levels with lines of 4096 bytes count what a TLB of 4K pages counts."""
    cachesim = importlib.import_module("cachesim")
    sets1, ways1, sets2, ways2 = geometry
    asked = [((one,), None) for one in addresses]

    def run() -> Counts:
        memory = cachesim.MainMemory()
        second = cachesim.Cache("second", sets2, ways2, 4096, "LRU")
        first = cachesim.Cache("first", sets1, ways1, 4096, "LRU", store_to=second, load_from=second)
        memory.load_to(second)
        memory.store_from(second)
        cachesim.CacheSimulator(first, memory).loadstore(asked, length=1)
        one, two = first.stats(), second.stats()
        return Counts(one["HIT_count"], two["HIT_count"], two["MISS_count"])

    return run
