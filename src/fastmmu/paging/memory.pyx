"""Host physical memory over one NumPy buffer."""

import mmap
import sys

import numpy as np

from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset

from fastmmu._arguments cimport shown, whole, word
from fastmmu.paging.huge_pages cimport fm_huge_ahead

from fastmmu.errors import BusError, ConfigError, OutOfMemoryError, StateError

_HUGE = 1 << 21         # bytes of a huge page of the host
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


def _always():
    # the host gives huge pages unasked, wherever something is touched
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            return "[always]" in file.read() and hasattr(mmap, "MADV_NOHUGEPAGE")
    except OSError:
        return False


_ALWAYS = _always()


cdef class PhysicalMemory:
    """Host physical memory: `nbytes` bytes from physical address 0, zero at the start.

    ``.u8`` and ``.u64`` are NumPy views of the one buffer (uint8[nbytes], uint64[nbytes // 8], little endian, as
    x86 lays it out). Pages that nothing touches take no memory of the host, so a large address space is cheap: of 1,000
    words touched, one every 4 MB, 1,000 pages of 4 KB are resident. Huge pages of the host are used where pages lie
    dense: where :meth:`advise_huge_pages` says so, and under tables that many translations went through.
    Table reads of the kernels are checked against this size; what a translation *results* in may lie outside.

    :param nbytes: size in bytes, a positive multiple of 8.
    :raises ConfigError: the size is no positive multiple of 8.
    :raises OutOfMemoryError: the operating system refuses the address space.

    Threads: as memory: nothing is locked, an aligned word is read and written as a whole. Who changes page tables while
    another thread walks them gets old or new entries.
    """

    def __init__(self, nbytes):
        if self.mem.nbytes:
            raise StateError("memory is made once: others may hold what is there; make another PhysicalMemory")
        nbytes = whole("size of memory", nbytes)
        if nbytes <= 0 or nbytes % 8:
            raise ConfigError(f"size of memory must be a positive multiple of 8 bytes, not {shown(nbytes)}")
        if nbytes >= 1 << 52:
            raise ConfigError(f"size of memory {shown(nbytes)} exceeds the 52-bit physical address space")
        try:
            owner = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemoryError(
                f"the operating system refuses {nbytes} bytes of address space ({error}); ask for less"
            ) from error
        if _ALWAYS:
            owner.madvise(mmap.MADV_NOHUGEPAGE)
        self._owner = owner
        mapped = np.frombuffer(owner, dtype=np.uint8)
        first = -mapped.ctypes.data % _HUGE      # a huge page of the host holds 2 MB aligned here, too
        self._bind(mapped[first:first + nbytes])
        self.next_look = 1 << 20

    @classmethod
    def from_array(cls, a):
        """Memory that *is* the given array or buffer: no copy is made, writes go both ways.

        :param a: C-contiguous NumPy array of any dtype, or anything with the buffer protocol (a memory-mapped
            file, bytes); its bytes are physical memory from address 0. Read-only input gives memory in which
            walks that would set accessed and dirty flags are refused, and queries work.
        :raises ConfigError: the array is not contiguous, empty, or not a multiple of 8 bytes long.
        """
        try:
            array = np.asarray(a) if isinstance(a, np.ndarray) else np.frombuffer(a, dtype=np.uint8)
        except Exception as error:
            raise ConfigError(f"cannot take {type(a).__name__} as memory: {error}") from error
        if array.dtype.hasobject:
            raise ConfigError("an array of Python objects cannot be memory; give integers or bytes")
        if not array.flags.c_contiguous:
            raise ConfigError("memory must be C-contiguous; pass np.ascontiguousarray(a) to copy it")
        flat = array.reshape(-1).view(np.uint8)
        if flat.nbytes == 0 or flat.nbytes % 8:
            raise ConfigError(f"memory must be a positive multiple of 8 bytes long, not {flat.nbytes}; pad it")
        if flat.ctypes.data % 8:
            raise ConfigError("memory must be aligned to 8 bytes; pass a copy")
        cdef PhysicalMemory self = cls.__new__(cls)
        self._owner = a
        self._bind(flat)
        self.next_look = ~<uint64_t> 0
        return self

    cdef void _bind(self, object u8) except *:
        self.u8 = u8
        self.u64 = u8.view("<u8")
        self.writable = u8.flags.writeable
        self.mem.base = <uint8_t *> <uintptr_t> u8.ctypes.data
        self.mem.nbytes = u8.nbytes

    cdef int forget(self, uint64_t start, uint64_t n) except -1:
        # whole pages of memory made here read as zero again, and take none of the host's
        cdef object first
        if sys.platform == "linux":             # MADV_DONTNEED is advice elsewhere
            first = self.u8.ctypes.data - np.frombuffer(self._owner, dtype=np.uint8).ctypes.data
            self._owner.madvise(mmap.MADV_DONTNEED, first + start, n)
        else:
            memset(self.mem.base + start, 0, n)
        return 0

    def advise_huge_pages(self, start=0, stop=None):
        """Ask the host for huge pages where a range of memory will be filled densely: tables and images that are looked
        up at random are read faster then. Only speed and what is resident depend on it, 2 MB for each touch.

        :param start, stop: bytes, as those of a slice; the whole huge pages (2 MB) in it are asked for. Nothing is done
            where the host has none, or for memory that :meth:`from_array` was given.
        """
        first, behind, _ = slice(start, stop).indices(self.nbytes)
        first, behind = (first + _HUGE - 1) // _HUGE * _HUGE, behind // _HUGE * _HUGE
        if first < behind and isinstance(self._owner, mmap.mmap) and self.next_look != ~<uint64_t> 0:
            fm_huge_ahead(self.mem.base + <uint64_t> first, behind - first)

    @property
    def nbytes(self):
        """Size in bytes."""
        return self.mem.nbytes

    def __reduce__(self):
        raise TypeError("memory is neither copied nor pickled: PhysicalMemory.from_array(memory.u8.copy()) is a copy, "
                        "and memory.u8 is what can be saved")

    def __len__(self):
        return self.mem.nbytes

    def __repr__(self):
        return f"PhysicalMemory({self.mem.nbytes:#x} bytes{'' if self.writable else ', read-only'})"

    def read64(self, address):
        """The 64-bit word at a physical address (a multiple of 8).

        :raises BusError: outside memory or not aligned.
        """
        return int(self.u64[self.place(address) >> 3])

    def write64(self, address, value):
        """Store a 64-bit word, 0..2**64 - 1, at a physical address (a multiple of 8).

        :raises BusError: outside memory or not aligned. :raises StateError: a value that does not fit, memory that is
            read-only.
        """
        cdef uint64_t at = self.place(address), stored = word("value", value)
        if not self.writable:
            raise StateError("this memory is read-only; give PhysicalMemory a copy")
        self.u64[at >> 3] = stored

    cdef uint64_t place(self, address) except? 0xBAD:
        # of a word
        number = whole("address", address)
        if number & 7 or not 0 <= number <= <object> self.mem.nbytes - 8:
            raise BusError(
                f"no 64-bit word at physical address {shown(number)}: memory holds {self.mem.nbytes:#x} bytes, "
                "words lie at multiples of 8"
            )
        return number
