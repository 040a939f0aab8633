"""Files that are no traces of programs, known by how they begin: what they are, and what to do with them.

Magic numbers: :mod:`fastmmu.trace.magics`; lines: the public descriptions of each format.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastmmu.trace.magics import kind_of

__all__ = ["Foreign", "foreign"]


class Foreign(NamedTuple):
    """``said``: what a file is, in a sentence; ``remedy``: what to do with it. ``sure``: a magic number says so."""

    said: str
    remedy: str
    sure: bool = True


_MAPS = "`fastmmu maps` and `fastmmu walk` read memory"
_LOG = "It is a log of events of the hypervisor, no accesses; `fastmmu kvm-log` reads it"
_UNPACK = "unpack it, and name a file"
_PHYSICAL = (
    "Its addresses are physical and come from behind the caches, so there is nothing to translate; record the "
    "program's own accesses (valgrind --tool=lackey --trace-mem=yes), or give --columns where they are linear addresses"
)
_RECORD = "valgrind --tool=lackey --trace-mem=yes --log-file=x.lackey PROGRAM makes a trace of what it does"
_SAVE = "save its addresses as .npy, .parquet or .csv"

_BY_KIND = {
    "memory": _MAPS, "state": "a memory dump of the machine is what `fastmmu maps` reads", "program": _RECORD,
    "disk": _RECORD, "archive": _UNPACK, "other": _SAVE, "log": "it holds events of a kernel, no accesses",
}  # fmt: skip
_REMEDIES = {
    "qemu-migration": "dump-guest-memory writes a memory image that `fastmmu maps` reads",
    "perf-data": "write it as text: perf script -F comm,tid,time,event,addr,ip >trace.txt",
    "trace-cmd": "it holds events of a kernel, no accesses; `fastmmu kvm-log` reads what `trace-cmd report` prints",
    "pdf": _RECORD,
}
_OWN = ("packed", "trace")  # kinds of files that are taken here
_SCAN = 1 << 16

_KVM = re.compile(rb"^[^\n]*\d\.\d+:\s+(kvm:)?kvm_[a-z_]+: ", re.MULTILINE)
_KVM_STAT = re.compile(rb"^Analyze events for all VMs", re.MULTILINE)
_V2P = re.compile(rb"(\s|#[^\n]*\n)*address_mapping(_group)?\s*\{")
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
    kind = kind_of(head)
    if kind is not None and kind.of not in _OWN:
        return Foreign(kind.said, _REMEDIES.get(kind.name, _BY_KIND[kind.of]))
    if _V2P.match(head):
        return Foreign(
            "a page map of drmemtrace (v2p.textproto)", "Name its trace, or the folder of both; --v2p takes this", False
        )
    if b"all VMs" in head and _KVM_STAT.search(head[:_SCAN]):
        return Foreign(
            "a table of `perf kvm stat`", "It holds sums alone; record events: perf record -e 'kvm:*'", False
        )
    if b"kvm_" in head and _KVM.search(head[:_SCAN]):
        return Foreign("a log of KVM's trace points", _LOG, False)
    lines = whole_lines(head)
    if not lines:
        return _plain_words(head)
    for line, said, remedy in _LINES:
        if all(map(line.fullmatch, lines)):
            return Foreign(said, remedy, False)
    found = map(_RAMULATOR.fullmatch, lines)
    if all(map(_RAMULATOR.fullmatch, lines)) and any(
        match[2] or match[1] not in _DINERO_OPS for match in found if match
    ):
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


@lru_cache(maxsize=1)  # each format asks for them
def whole_lines(head: bytes) -> tuple[bytes, ...]:
    """The lines of text at the begin of a file that are whole, without empty ones; () where it is no text."""
    text = head[:_SCAN]
    if b"\0" in text:
        return ()
    found = text.split(b"\n")
    if len(found) > 1:  # what follows the last newline is nothing, or cut
        found.pop()
    return tuple(filter(None, map(bytes.rstrip, found)))
