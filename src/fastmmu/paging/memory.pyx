"""Host physical memory over one NumPy buffer, or over segments of a file."""

import mmap
import os
import sys

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from fastmmu._arguments cimport bytes_in, bytes_out, flag, shown, whole, within, word, words_in
from fastmmu.arch.bits cimport ONES
from fastmmu.paging.huge_pages cimport fm_huge_ahead
from fastmmu.paging.segments cimport (
    PIECE_DATA, PIECE_FETCHED, PIECE_ZERO, Piece, Placed, placed_free, placed_init, placed_read,
)

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


def _reserved(nbytes):
    # addresses of this process, zero, of which only what is touched takes memory
    try:
        owner = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, ValueError, OverflowError) as error:
        raise OutOfMemoryError(
            f"the operating system refuses {nbytes} bytes of address space ({error}); ask for less"
        ) from error
    if _ALWAYS:
        owner.madvise(mmap.MADV_NOHUGEPAGE)
    return owner


cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/types.h>
    /* pages of a file in place of what is at an address; writes are seen by nobody else. 0: refused */
    static int fm_map_file(uint8_t *at, uint64_t n, int file, uint64_t offset, int writable) {
        return mmap(at, n, PROT_READ | (writable ? PROT_WRITE : 0), MAP_PRIVATE | MAP_FIXED, file, (off_t)offset)
            != MAP_FAILED;
    }
    """
    bint fm_map_file(uint8_t *at, uint64_t n, int file, uint64_t offset, bint writable) noexcept nogil


cdef class PhysicalMemory:
    """Host physical memory: `nbytes` bytes from physical address 0, zero at the start.

    ``.u8`` and ``.u64`` are NumPy views of the one buffer (uint8[nbytes], uint64[nbytes // 8], little endian, as
    x86 lays it out); memory with holes (:meth:`from_segments`) has neither, and is read by :meth:`read`. Pages that
    nothing touches take no memory of the host, so a large address space is cheap: of 1,000 words touched, one
    every 4 MB, 1,000 pages of 4 KB are resident. Huge pages of the host are used where pages lie dense: where
    :meth:`advise_huge_pages` says so, and under tables that many translations went through.
    Table reads of the kernels are checked against this size; what a translation *results* in may lie outside.

    :param nbytes: size in bytes, a positive multiple of 8.
    :raises ConfigError: the size is no positive multiple of 8.
    :raises OutOfMemoryError: the operating system refuses the address space.

    Threads: as memory: nothing is locked, an aligned word is read and written as a whole. Who changes page tables while
    another thread walks them gets old or new entries.
    """

    def __init__(self, nbytes):
        if self.top:
            raise StateError("memory is made once: others may hold what is there; make another PhysicalMemory")
        nbytes = whole("size of memory", nbytes)
        if nbytes <= 0 or nbytes % 8:
            raise ConfigError(f"size of memory must be a positive multiple of 8 bytes, not {shown(nbytes)}")
        if nbytes >= 1 << 52:
            raise ConfigError(f"size of memory {shown(nbytes)} exceeds the 52-bit physical address space")
        owner = _reserved(nbytes + _HUGE)
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
        self._u8 = u8
        self._u64 = u8.view("<u8")
        self.writable = u8.flags.writeable
        self.mem.base = <uint8_t *> <uintptr_t> u8.ctypes.data
        self.mem.nbytes = self.top = u8.nbytes

    @property
    def u8(self):
        return self._array(self._u8)

    @property
    def u64(self):
        return self._array(self._u64)

    def _array(self, array):
        if array is None and self.placed != NULL:
            raise StateError("this memory has holes, so it is no one array; read(address, n) gives bytes of it, "
                             "and .ranges says where it is")
        return array

    @classmethod
    def from_segments(cls, start, length, offset, data=b"", *, file=None, fetch=None, writable=False, most=None):
        """Memory with holes: segments of physical addresses, each with the place of its bytes in one buffer.

        Whole pages that lie in ``file`` as in memory, modulo 4 KB, are mapped at their place; what does not is copied
        a page at a time, when it is read. So images of any size cost only what is looked at.

        :param start, length: uint64[n], physical address and bytes of each segment; ascending, without overlap, below
            2**46. Words of 8 bytes that are memory only in part are none. :param offset: int64[n], where in ``data``
            a segment lies; :data:`ZERO`: nowhere, it is zero; :data:`FETCHED`: ``fetch`` makes its pages.
        :param data: a buffer; it is kept and must not change. :param file: the open file of which ``data`` is all, from
            byte 0; None: nothing is mapped at its place.
        :param fetch: called with the physical address of a page, returns its 4096 bytes, and perhaps more that follow
            them; any thread that walks may call it. What it raises ends the call that walked, with that error.
        :param writable: writes are possible, and change neither data nor file. :param most: bytes of pages that may be
            copied; None: a quarter of the machine's memory. More are an OutOfMemoryError.
        :raises ConfigError: segments that are not so. :raises OutOfMemoryError: the system refuses the address space.
        """
        return _placed(cls, start, length, offset, data, file, fetch, writable, most)

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
        """Size in bytes; where there are holes, the end of the last segment."""
        return self.top

    @property
    def ranges(self):
        """Where memory is: uint64[n, 2], start and end of each range, ascending. Without holes there is one."""
        cdef uint64_t i
        if self.placed == NULL:
            return np.array([(0, self.top)], np.uint64)
        found = np.empty((self.placed.n_spans, 2), np.uint64)
        for i in range(self.placed.n_spans):
            found[i] = self.placed.span[i].start, self.placed.span[i].end
        return found

    @property
    def copied(self):
        """Bytes of pages that were put in place because walks read them; 0 without holes."""
        return 0 if self.placed == NULL else self.placed.copied << 12

    def read(self, address, n):
        """``n`` bytes from a physical address on. Pages of compressed files are not kept for that.

        :raises BusError: some of it is not memory; the error names the first address that is not.
        """
        cdef uint64_t at = within("address", address, 0, ONES), length = within("n", n, 0, 1 << 62, ConfigError), got
        if length > self.top:
            raise BusError(f"{length} bytes are more than memory holds, {self.top:#x}")
        try:
            data = bytearray(length)
        except MemoryError as error:
            raise OutOfMemoryError(f"no memory for {length} bytes; read in parts") from error
        got = self.into(at, data)
        if got < length:
            raise BusError(f"physical address {at + got:#x} is not in memory ({self._where()})")
        return bytes(data)

    def read_into(self, address, out):
        """As :meth:`read`, into a writable buffer of bytes; returns how many: fewer where a hole begins."""
        return self.into(within("address", address, 0, ONES), bytes_out("out", out))

    cdef uint64_t into(self, uint64_t at, uint8_t[::1] out) except? 0xBAD:
        # as read_into
        cdef uint64_t n = out.shape[0], got = 0
        if not n:
            return 0
        if self.placed != NULL:
            with nogil:
                got = placed_read(self.placed, at, n, &out[0])
            self.settle()
        elif at < self.top:
            got = min(n, self.top - at)
            memcpy(&out[0], self.mem.base + at, got)
        return got

    cdef bint has_table(self, uint64_t at) noexcept:
        cdef int i
        if mem_holds(&self.mem, at, 4096):
            return True
        for i in range(512 if self.placed != NULL else 0):
            if mem_holds(&self.mem, at + 8 * i, 8):
                return True
        return False

    cdef int settle(self) except -1:
        # only memory with holes fails
        if self.placed == NULL or self._failure is None and not self.placed.full:
            return 0
        failure, self._failure = self._failure, None
        self.placed.full = 0
        if failure is not None:
            raise failure
        raise OutOfMemoryError(
            f"the page tables that were walked take more than {self.placed.most << 12} bytes, copied out of a file "
            "that cannot be mapped; allow more (most=), or unpack the file")

    def __reduce__(self):
        raise TypeError("memory is neither copied nor pickled: PhysicalMemory.from_array(memory.u8.copy()) is a copy, "
                        "and memory.u8 is what can be saved")

    def __len__(self):
        return self.top

    def __dealloc__(self):
        if self.placed != NULL:
            placed_free(self.placed)

    def __repr__(self):
        return f"PhysicalMemory({self._where()}{'' if self.writable else ', read-only'})"

    def _where(self):
        if self.placed == NULL:
            return f"{self.top:#x} bytes"
        return f"{self.placed.n_spans} ranges up to {self.top:#x}"

    def read64(self, address):
        """The 64-bit word at a physical address (a multiple of 8).

        :raises BusError: outside memory or not aligned.
        """
        cdef uint64_t at = self.place(address)
        return int(mem_read64(&self.mem, at))

    def write64(self, address, value):
        """Store a 64-bit word, 0..2**64 - 1, at a physical address (a multiple of 8).

        :raises BusError: outside memory or not aligned. :raises StateError: a value that does not fit, memory that is
            read-only.
        """
        cdef uint64_t at = self.place(address), stored = word("value", value)
        if not self.writable:
            raise StateError("this memory is read-only; give PhysicalMemory a copy")
        mem_write64(&self.mem, at, stored)

    cdef uint64_t place(self, address) except? 0xBAD:
        # of a word
        number = whole("address", address)
        cdef bint held = not number & 7 and 0 <= number < 1 << 62 and mem_holds(&self.mem, number, 8)
        self.settle()
        if not held:
            raise BusError(
                f"no 64-bit word at physical address {shown(number)}: memory holds {self._where()}, "
                "words lie at multiples of 8"
            )
        return number


# ---- segments ---------------------------------------------------------------------------------------------

ZERO = -1
FETCHED = -2

_TOP = 1 << 46
_MOST_MAPPED = 1000             # segments: each is an entry in the host's list of mappings, which has room for 65,530


cdef class _Run:
    # bytes that were made, from a page on
    cdef const uint8_t[::1] held
    cdef uint64_t at, n


cdef class _Fetched:
    # what makes pages, and what it made last: pages that follow one another are often had together
    cdef object make
    cdef _Run last

    cdef int page(self, uint64_t at, uint8_t *to) except -1:
        cdef _Run run = self.last
        if run is None or at - run.at >= run.n or run.n - (at - run.at) < 4096:
            run = _Run.__new__(_Run)
            run.held = self.make(int(at))
            run.at, run.n = at, run.held.shape[0]
            if run.n < 4096:
                raise ConfigError(f"fetch made {run.n} bytes of the page at {at:#x}, not 4096 or more")
            self.last = run
        memcpy(to, &run.held[at - run.at], 4096)
        return 0


cdef int fetched(void *context, uint64_t at, uint8_t *to) noexcept with gil:
    # a page, for a walk that knows no Python; what is raised waits until the walk has ended
    cdef PhysicalMemory memory = <PhysicalMemory> context
    try:
        (<_Fetched> memory._fetch).page(at, to)
    except BaseException as error:
        if memory._failure is None:
            memory._failure = error
        return -1
    return 0


cdef PhysicalMemory _placed(cls, start, length, offset, data, file, fetch, writable, most):
    cdef PhysicalMemory self = cls.__new__(cls)
    cdef const uint64_t[::1] starts = words_in("start", start, ConfigError)
    cdef const uint64_t[::1] lengths = words_in("length", length, ConfigError)
    cdef const int64_t[::1] offsets
    cdef const uint8_t[::1] held = bytes_in("data", data, ConfigError)
    cdef Placed *s
    cdef Piece *p
    cdef uint64_t i, n = starts.shape[0], end = 0, size = held.shape[0]
    cdef bint writes = flag("writable", writable)
    cdef _Fetched made = None
    cdef uint64_t copies = (_quarter() if most is None else within("most", most, 0, 1 << 62, ConfigError)) >> 12
    offsets = _offsets(offset)
    if lengths.shape[0] != <Py_ssize_t> n or offsets.shape[0] != <Py_ssize_t> n:
        raise ConfigError(f"start, length and offset have {n}, {lengths.shape[0]}, {offsets.shape[0]} elements; "
                          "give as many of each")
    if fetch is not None and not callable(fetch):
        raise ConfigError(f"fetch must be callable, not {type(fetch).__name__}")
    if fetch is not None:
        made = _Fetched.__new__(_Fetched)
        made.make = fetch
    s = self.placed = <Placed *> calloc(1, sizeof(Placed))
    if s == NULL:
        raise OutOfMemoryError("no memory for the segments")
    s.piece = <Piece *> calloc(n + 1, sizeof(Piece))
    if s.piece == NULL:
        raise OutOfMemoryError(f"no memory for {n} segments")
    for i in range(n):
        if starts[i] < end or lengths[i] == 0 or lengths[i] > _TOP or starts[i] > _TOP - lengths[i]:
            raise ConfigError(f"segment {i}, {lengths[i]:#x} bytes at {starts[i]:#x}: segments are ascending, without "
                              f"overlap, not empty and below {_TOP:#x}; the one before ends at {end:#x}")
        p = s.piece + i
        p.start = starts[i]
        p.end = end = p.start + lengths[i]
        p.kind = PIECE_ZERO if offsets[i] == ZERO else PIECE_FETCHED if offsets[i] == FETCHED else PIECE_DATA
        p.offset = offsets[i]
        if p.kind == PIECE_FETCHED and fetch is None:
            raise ConfigError(f"segment {i} at {starts[i]:#x} is FETCHED, and there is no fetch")
        if p.kind == PIECE_DATA and (offsets[i] < 0 or p.offset > size or size - p.offset < lengths[i]):
            raise ConfigError(f"segment {i}, {lengths[i]:#x} bytes at {starts[i]:#x}, lies at byte {offsets[i]} of "
                              f"data, which has {size}")
    s.n_pieces = n
    s.head.pages = (end + 4095) >> 12
    if placed_init(s) < 0:
        raise OutOfMemoryError(f"no memory for {n} segments")
    if not s.n_spans:
        raise ConfigError("no segment holds a whole word of 8 bytes: there is no memory")
    self._data, self._fetch, self.writable = held, made, writes
    s.data = &held[0] if size else NULL
    s.fetch = fetched
    s.context = <void *> self
    s.most = copies
    s.writable = writes
    bits = (s.head.pages + 63) // 64 * 8
    maps = _reserved((s.head.pages << 12) + 2 * bits)
    place = np.frombuffer(maps, np.uint8)
    self._owner = place
    s.base = <uint8_t *> <uintptr_t> place.ctypes.data
    s.filled = <uint64_t *> (s.base + (s.head.pages << 12))
    s.head.ready = s.filled + (s.head.pages + 63) // 64
    if file is not None:
        _map(s, _descriptor(file), writes)
    self.mem.base = s.base
    self.mem.segments = &s.head
    self.top = s.span[s.n_spans - 1].end
    self.next_look = ~<uint64_t> 0
    return self


cdef int _map(Placed *s, int descriptor, bint writable) except -1:
    # The longest of the pieces that can be mapped; the system may refuse, and then they are copied.
    cdef uint64_t i, first, behind, least = 1
    cdef Piece *p
    lengths = np.zeros(s.n_pieces, np.uint64)
    for i in range(s.n_pieces):
        p = s.piece + i
        first = (p.start + 4095) >> 12
        behind = p.end >> 12
        if p.kind == PIECE_DATA and not (p.start - p.offset) & 4095 and first < behind:
            lengths[i] = behind - first
    if s.n_pieces > _MOST_MAPPED:
        least = max(1, int(np.sort(lengths)[len(lengths) - _MOST_MAPPED]))
    for i in range(s.n_pieces):
        p = s.piece + i
        first = (p.start + 4095) >> 12
        if lengths[i] >= least and fm_map_file(
                s.base + (first << 12), lengths[i] << 12, descriptor, p.offset + ((first << 12) - p.start), writable):
            p.mapped = first
            p.mapped_end = first + <uint64_t> lengths[i]
    return 0


cdef int _descriptor(file) except -1:
    try:
        return os.fstat(file.fileno()) and file.fileno()
    except Exception as error:
        raise ConfigError(f"file must be an open file with a descriptor, not {type(file).__name__}: {error}") from error


cdef uint64_t _quarter() except 0:
    try:
        return max(1 << 26, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    except (ValueError, OSError):
        return 1 << 30


cdef const int64_t[::1] _offsets(offset):
    try:
        array = np.ascontiguousarray(offset)
    except Exception as error:
        raise ConfigError(f"offset must be an array of integers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
        raise ConfigError(f"offset must be integers[n], not {array.dtype}{list(array.shape)}")
    if array.dtype.kind == "u" and array.size and int(array.max()) >> 63:
        raise ConfigError(f"offset {int(array.max()):#x} does not fit 63 bits")
    return array.astype(np.int64)
