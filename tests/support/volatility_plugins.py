"""volatility3's plug-ins as its users run them: a configuration, a plug-in, what it prints and writes.

Symbols of a real kernel are nowhere at hand. What lists processes gets two in memory, one behind the other, in the form
that Windows has, by an ISF of our own that names the few fields which that takes; what such a plug-in then does with
their address spaces is its own code.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import fastmmu
from fastmmu import PhysicalMemory

__all__ = ["OTHERS", "PLUGINS", "Plugin", "layer_config", "processes", "raw_image", "run"]

FRAMEWORK = "volatility3.framework"
FILES = {"raw": [], "lime": ["lime.LimeLayer"], "elf": ["elf.Elf64Layer"], "dmp": ["crash.WindowsCrashDump64Layer"]}
"""Layers between the file and the address space."""

Plugin = tuple[str, dict[str, Any]]
"""Its module and class, and its arguments."""

PLUGINS: dict[str, Plugin] = {
    "banners": ("banners.Banners", {}),
    "configwriter": ("configwriter.ConfigWriter", {}),
    "layerwriter, list": ("layerwriter.LayerWriter", {"list": True}),
    "linux.vmcoreinfo": ("linux.vmcoreinfo.VMCoreInfo", {}),
    "regexscan": ("regexscan.RegExScan", {"pattern": "[A-Z]{4}"}),
    "vmscan": ("vmscan.Vmscan", {"log-threshold": 2}),
    "windows.mftscan": ("windows.mftscan.MFTScan", {}),
    "windows.mftscan, ADS": ("windows.mftscan.ADS", {}),
    "windows.mftscan, resident": ("windows.mftscan.ResidentData", {}),
    "windows.statistics": ("windows.statistics.Statistics", {}),
    "yarascan": ("yarascan.YaraScan", {"yara_string": "AVAU"}),
    "yarascan, wide": ("yarascan.YaraScan", {"yara_string": "avau", "wide": True, "insensitive": True}),
}
"""What runs on any image, without symbols of its kernel."""

OTHERS = {
    "layerwriter.LayerWriter": "the layer below is written, which is a small image's here",
    "windows.crashinfo.Crashinfo": "of Windows' crash dumps alone",
    "frameworkinfo.FrameworkInfo": "looks at no memory",
    "isfinfo.IsfInfo": "looks at no memory",
    "timeliner.Timeliner": "runs other plug-ins, which need symbols",
    "windows.memmap.Memmap": "with a list of processes of our own",
    "windows.strings.Strings": "with a list of processes of our own",
}
"""What is tried apart, or not, and why."""


def layer_config(path: Path, file: str, kind: str, cr3: int) -> dict[str, Any]:
    """The configuration of an address space of an image, as configwriter writes it and `vol -c` reads it."""
    config: dict[str, Any] = {"class": f"{FRAMEWORK}.layers.intel.{kind}", "page_map_offset": cr3}
    at = "memory_layer"
    for name in FILES[file]:
        config[f"{at}.class"] = f"{FRAMEWORK}.layers.{name}"
        at += ".base_layer"
    return config | {f"{at}.class": f"{FRAMEWORK}.layers.physical.FileLayer", f"{at}.location": path.as_uri()}


def run(plugin: Plugin, config: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """What a plug-in prints as CSV, and the files that it writes. `config`: what it wants beside its arguments."""
    framework = importlib.import_module(FRAMEWORK)
    framework.require_interface_version(2, 0, 0)
    name, arguments = plugin
    module, kind = name.rsplit(".", 1)
    framework.import_files(importlib.import_module("volatility3.plugins"), True)
    wanted = getattr(importlib.import_module(f"volatility3.plugins.{module}"), kind)
    context = importlib.import_module(f"{FRAMEWORK}.contexts").Context()
    configuration = importlib.import_module(f"{FRAMEWORK}.interfaces.configuration")
    given = configuration.HierarchicalDict({**config, **arguments})
    context.config.splice(f"plugins.{kind}", given)
    automagic = importlib.import_module(f"{FRAMEWORK}.automagic.construct_layers")
    magics = [automagic.ConstructionMagic(context, "automagic.ConstructionMagic")]
    files: dict[str, bytes] = {}
    interface = importlib.import_module(f"{FRAMEWORK}.interfaces.plugins")

    class File(io.BytesIO, interface.FileHandlerInterface):  # type: ignore[misc, name-defined]
        def __init__(self, filename: str) -> None:
            io.BytesIO.__init__(self)
            interface.FileHandlerInterface.__init__(self, filename)

        def close(self) -> None:
            if not self.closed:
                files[self.preferred_filename] = self.getvalue()
            io.BytesIO.close(self)

    plugins = importlib.import_module(f"{FRAMEWORK}.plugins")
    made = plugins.construct_plugin(context, magics, wanted, "plugins", lambda *_: None, File)
    renderer = importlib.import_module("volatility3.cli.text_renderer").CSVRenderer()
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", newline="")
    with contextlib.redirect_stdout(out):
        renderer.render(made.run())
        out.flush()
    return out.buffer.getvalue().decode(), files


# ---- a list of processes ---------------------------------------------------------------------------------------------

_LINKS, _NAME, _ID, _EACH = 0x10, 0x20, 0x30, 0x100
_EMPTY = ("_ETHREAD _KTHREAD _ERESOURCE _UNICODE_STRING _EX_FAST_REF _TOKEN _OBJECT_HEADER _FILE_OBJECT _DEVICE_OBJECT "
          "_CM_KEY_BODY _CMHIVE _CM_KEY_NODE _CM_KEY_VALUE _HMAP_ENTRY _MMVAD_SHORT _MMVAD _KSYSTEM_TIME _KMUTANT "
          "_DRIVER_OBJECT _OBJECT_SYMBOLIC_LINK _CONTROL_AREA _SHARED_CACHE_MAP _VACB _POOL_TRACKER_BIG_PAGES "
          "_IMAGE_DOS_HEADER _KTIMER _LDR_DATA_TABLE_ENTRY _POOL_HEADER")  # fmt: skip


def _symbols() -> dict[str, Any]:
    """The ISF: fields of the two processes; of what volatility3 wants to be there besides, the names."""

    def of(kind: str, name: str, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "name": name, **more}

    def struct_of(size: int, **fields: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        members = {name: {"offset": at, "type": kind} for name, (at, kind) in fields.items()}
        return {"fields": members, "kind": "struct", "size": size}

    def base(size: int, kind: str = "int") -> dict[str, Any]:
        return {"endian": "little", "kind": kind, "signed": False, "size": size}

    entry = of("pointer", "", subtype=of("struct", "_LIST_ENTRY"))
    name = of("array", "", count=15, subtype=of("base", "unsigned char"))
    del entry["name"], name["name"]
    return {
        "metadata": {"format": "6.2.0", "producer": {"name": "fastmmu", "version": "1"}, "windows": {}},
        "base_types": {
            "pointer": base(8),
            "unsigned char": base(1, "char"),
            "unsigned long long": base(8),
        },
        "enums": {},
        "symbols": {"PsActiveProcessHead": {"address": 0}},
        "user_types": {
            **{name: struct_of(8) for name in _EMPTY.split()},
            "_LIST_ENTRY": struct_of(16, Flink=(0, entry), Blink=(8, entry)),
            "_KPROCESS": struct_of(16, DirectoryTableBase=(0, of("base", "unsigned long long"))),
            "_EPROCESS": struct_of(
                _EACH,
                Pcb=(0, of("struct", "_KPROCESS")),
                ActiveProcessLinks=(_LINKS, of("struct", "_LIST_ENTRY")),
                ImageFileName=(_NAME, name),
                UniqueProcessId=(_ID, of("base", "unsigned long long")),
            ),
        },
    }


def raw_image(memory: PhysicalMemory, path: Path) -> None:
    """Memory as a raw image, with holes for what is zero."""
    with path.open("wb") as file:
        for start, end in memory.ranges.tolist():
            for at in range(start, end, 1 << 16):
                data = memory.read(at, min(1 << 16, end - at))
                if any(data):
                    file.seek(at)
                    file.write(data)
        file.truncate(int(memory.ranges[-1][1]))


def processes(memory: PhysicalMemory, cr3: int, roots: list[int], path: Path, kind: str, place: Path) -> dict[str, Any]:
    """Put a process a root into a raw image of memory; the configuration of a plug-in that wants a kernel."""
    rows = fastmmu.mappings(memory, fastmmu.GuestState(cr3=cr3))
    room = bytearray(4096)
    pages = rows[rows["size"] == 4096]
    free = next(row for row in pages if memory.read_into(int(row.pa), room) == 4096 and not any(room))
    head, pa = int(free.va) & (1 << 48) - 1, int(free.pa)
    table = bytearray(4096)
    links = [head] + [head + _EACH * (i + 1) + _LINKS for i in range(len(roots))]
    for i, at in enumerate(links):
        struct.pack_into("<QQ", table, at - head, links[(i + 1) % len(links)], links[i - 1])
    for i, root in enumerate(roots):
        begin = _EACH * (i + 1)
        struct.pack_into("<Q", table, begin, root)
        struct.pack_into("<15s", table, begin + _NAME, f"process {i}".encode())
        struct.pack_into("<Q", table, begin + _ID, 4 * (i + 1))
    with path.open("r+b") as file:
        file.seek(pa)
        file.write(table)
    symbols = place / "symbols.json"
    symbols.write_text(json.dumps(_symbols()))
    config = {f"kernel.layer_name.{name}": value for name, value in layer_config(path, "raw", kind, cr3).items()}
    table_class = f"{FRAMEWORK}.symbols.windows.WindowsKernelIntermedSymbols"
    return config | {
        "kernel.class": f"{FRAMEWORK}.contexts.Module",
        "kernel.offset": head,
        "kernel.symbol_table_name.class": table_class,
        "kernel.symbol_table_name.isf_url": symbols.as_uri(),
        "kernel.symbol_table_name.symbol_mask": 0,
    }
