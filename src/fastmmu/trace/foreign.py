"""Files that are no traces of programs, known by how they begin: what they are, and what to do with them.

Magic numbers and lines: the public descriptions of each format.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

__all__ = ["Foreign", "foreign"]


class Foreign(NamedTuple):
    """``said``: what a file is, in a sentence; ``remedy``: what to do with it. ``sure``: a magic number says so."""

    said: str
    remedy: str
    sure: bool = True


_MAPS = "`fastmmu maps` and `fastmmu walk` read memory"
_LOG = "It is a log of events of the hypervisor, no accesses; no command reads it"
_UNPACK = "unpack it, and name a file"
_PHYSICAL = (
    "Its addresses are physical and come from behind the caches, so there is nothing to translate; record the "
    "program's own accesses (valgrind --tool=lackey --trace-mem=yes), or give --columns where they are linear addresses"
)
_RECORD = "valgrind --tool=lackey --trace-mem=yes --log-file=x.lackey PROGRAM makes a trace of what it does"
_SAVE = "save its addresses as .npy, .parquet or .csv"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (16, b"\x04\0", "an ELF core file, memory and registers", _MAPS),  # e_type, judged behind the ELF magic number
    (0, b"\x7fELF", "an ELF program or library", _RECORD),
    (0, b"EMiL", "a LiME memory image", _MAPS),
    (0, b"AVML", "an AVML memory image", _MAPS),
    (0, b"KDUMP   ", "a kdump memory image", _MAPS),
    (0, b"DISKDUMP", "a diskdump memory image", _MAPS),
    (0, b"makedumpfile\0", "a flattened kdump memory image", _MAPS),
    (0, b"PAGEDU64", "a Windows crash dump", _MAPS),
    (0, b"PAGEDUMP", "a 32-bit Windows crash dump", _MAPS),
    (0, b"\xd0\xbe\xd2\xbe", "the state file of a VMware machine", _MAPS),
    (0, b"\xd1\xba\xd1\xba", "the state file of a VMware machine", _MAPS),
    (0, b"\xd2\xbe\xd2\xbe", "the state file of a VMware machine", _MAPS),
    (0, b"\xd3\xbe\xd3\xbe", "the state file of a VMware machine", _MAPS),
    (0, b"QEVM", "a QEMU migration stream", "dump-guest-memory writes a memory image that `fastmmu maps` reads"),
    (0, b"PERFILE2", "a perf.data file", "write it as text: perf script -F comm,tid,time,event,addr,ip >trace.txt"),
    (
        0,
        b"\x17\x08Dtracing",
        "a trace-cmd file",
        "it holds events of a kernel, no accesses; no command reads it",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _SAVE),
    (0, b"SQLite format 3\0", "an SQLite database", _SAVE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x1f\x9d", "a file compressed by compress (.Z)", _UNPACK),
    (0, b"%PDF-", "a PDF file", _RECORD),
)
_SCAN = 1 << 16

_KVM = re.compile(rb"^[^\n]*\d\.\d+:\s+(kvm:)?kvm_[a-z_]+: ", re.MULTILINE)
_KVM_STAT = re.compile(rb"^Analyze events for all VMs", re.MULTILINE)
_HEX = rb"0[xX][0-9a-fA-F]+"
_LINES: tuple[tuple[re.Pattern[bytes], str, str], ...] = (  # every line of the file is one
    (
        re.compile(rb"%s\s+(READ|WRITE|IFETCH|P_MEM_RD|P_MEM_WR|P_FETCH|BOFF)\s+\d+" % _HEX),
        "a DRAMSim trace",
        _PHYSICAL,
    ),
    (re.compile(rb"\d+ (R %s( %s)?|W %s)" % (_HEX, _HEX, _HEX)), "a USIMM trace", _PHYSICAL),
    (
        re.compile(rb'\d+, %s, %s, ".*?"(, (load|store), %s(, .+?)?)*' % (_HEX, _HEX, _HEX)),
        "a log of QEMU's execlog plug-in",
        (
            "Of a whole machine its data addresses are physical, those of instructions are not; record the program "
            "with valgrind --tool=lackey --trace-mem=yes"
        ),
    ),
)
_RAMULATOR = re.compile(rb"(\d+) \d+( \d+)?")
_DINERO_OPS = (b"0", b"1", b"2")


def foreign(head: bytes) -> Foreign | None:
    """What a file that begins so is, if it is known and no trace of a program."""
    for at, magic, said, remedy in _MAGIC:
        if head[at : at + len(magic)] == magic and (at != 16 or head.startswith(b"\x7fELF")):
            return Foreign(said, remedy)
    if _KVM_STAT.search(head[:_SCAN]):
        return Foreign(
            "a table of `perf kvm stat`", "It holds sums alone; record events: perf record -e 'kvm:*'", False
        )
    if _KVM.search(head[:_SCAN]):
        return Foreign("a log of KVM's trace points", _LOG, False)
    lines = whole_lines(head)
    if not lines:
        return _plain_words(head)
    for line, said, remedy in _LINES:
        if all(map(line.fullmatch, lines)):
            return Foreign(said, remedy, False)
    found = [_RAMULATOR.fullmatch(line) for line in lines]
    if all(found) and any(match[2] or match[1] not in _DINERO_OPS for match in found if match):
        return Foreign("a CPU trace of Ramulator", _PHYSICAL, False)
    return None


def _plain_words(head: bytes) -> Foreign | None:
    """8-byte words of which each, or each second, third or fourth, is an address."""
    words = np.frombuffer(head[: len(head) // 8 * 8], "<u8")
    addresses = (words >= 0x1000) & (words < 1 << 48)
    if len(words) < 32 or not any(addresses[first::step].all() for step in (1, 2, 3, 4) for first in range(step)):
        return None
    return Foreign(
        "plain binary: words of 8 bytes, many of them addresses, without a header that says which",
        "Save the addresses as a .npy file: numpy.save(OUT, numpy.fromfile(FILE, '<u8')[FIRST::STEP])",
        False,
    )


def whole_lines(head: bytes) -> list[bytes]:
    """The lines of text at the begin of a file that are whole, without empty ones; [] where it is no text."""
    text = head[:_SCAN]
    if b"\0" in text:
        return []
    found = text.split(b"\n")
    if len(found) > 1:  # what follows the last newline is nothing, or cut
        found.pop()
    return [line.rstrip() for line in found if line.strip()]
