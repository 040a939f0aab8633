"""An address space as an object: reads, translation, mappings, who maps a page, what changed."""

import threading

import numpy as np

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from fastmmu._arguments cimport bytes_out, flag, instance, shown, within
from fastmmu.arch.types cimport MODE_4, MODE_PAE, Ept, Paging, Walk
from fastmmu.paging.leaf_rows cimport LeafRow
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState, Npt, SecondLevel, as_eptp, prepare
from fastmmu.space.gather cimport Gather, Hole, gather, gather_init, gather_many
from fastmmu.space.rows cimport Reverse, reverse_build, reverse_find, reverse_free, rows_compare
from fastmmu.dtypes import HOLE_DTYPE, MAPPING_DTYPE, Fault
from fastmmu.errors import ConfigError, NotMappedError, OutOfMemoryError, StateError, WrongTypeError
from fastmmu.paging.mappings import MappingArray, iter_mappings, mappings
from fastmmu.paging.translate import _addresses, translate

assert sizeof(Hole) == HOLE_DTYPE.itemsize

cdef enum:
    HOLES = 1 << 12             # of one read that are described
    STEP = 1 << 26              # bytes read between two looks for signals
    MANY = 1 << 16              # addresses likewise


_WHY = {
    Fault.PAGE_FAULT: "no page", Fault.GENERAL_PROTECTION: "no address", Fault.EPT_VIOLATION: "no page in the EPT",
    Fault.EPT_MISCONFIG: "a misconfigured entry of the EPT", Fault.BUS: "outside memory",
    Fault.NESTED_PAGE_FAULT: "no page in the nested page tables",
}


cdef class AddressSpace:
    """What is seen through the page tables of one address space. Nothing of it is written.

    Rights are left aside everywhere, unless an ``access`` is given: an address is there if the tables, and the EPT,
    lead to memory, whoever may go there. What is not is a hole.

    :param memory: :class:`PhysicalMemory`, flat or with holes. :param state: :class:`GuestState`; PDPTE registers
        that it does not have are loaded once, now. :param eptp: EPT pointer (int or :class:`Eptp`), or
        :class:`Npt`; None = neither.
    :raises StateError: an EPTP that is none. :raises BusError: a root table outside memory.

    Threads: share it; where memory changes meanwhile, what it is read for is old or new, word by word.
    """

    cdef readonly PhysicalMemory memory
    cdef readonly GuestState state
    cdef readonly SecondLevel eptp
    cdef Paging paging
    cdef Ept ept
    cdef int load               # the fault of the load of the PDPTE registers
    cdef uint64_t end           # last linear address there is
    cdef object lock, rows
    cdef Reverse reverse

    def __init__(self, PhysicalMemory memory not None, GuestState state not None, eptp=None):
        cdef Walk w
        if self.memory is not None:
            raise StateError("an AddressSpace is made once; make another")
        cdef SecondLevel pointer = None if eptp is None else as_eptp(eptp)
        self.load = prepare(memory, state, pointer, False, NULL, &self.paging, &self.ept, &w)
        self.end = ~<uint64_t> 0 if self.paging.mode >= MODE_4 else 0xFFFFFFFFU
        self.lock = threading.Lock()
        if (self.paging.mode == MODE_PAE and state.pdptes is None and not self.load
                and not isinstance(pointer, Npt)):
            state = state.replace(pdptes=[self.paging.pdpte[i] for i in range(4)])
        self.memory, self.state, self.eptp = memory, state, pointer

    def __dealloc__(self):
        reverse_free(&self.reverse)

    cdef int begin(self, Gather *s, Paging *g, Ept *e, object pad) except -1:
        if self.memory is None:
            raise StateError("this AddressSpace was not made by its constructor")
        g[0] = self.paging
        e[0] = self.ept
        if self.load:
            memset(g.pdpte, 0, sizeof(g.pdpte))
        gather_init(s, &self.memory.mem, self.memory.placed, g, e if self.eptp is not None else NULL)
        if pad is not None:
            s.pad = <uint8_t> within("pad", pad, 0, 255, ConfigError)
        return 0

    def __reduce__(self):
        raise TypeError("an AddressSpace is neither copied nor pickled, as its memory is not; make another of it")

    def __repr__(self):
        if self.memory is None:
            return "<AddressSpace without memory>"
        name = "ncr3" if isinstance(self.eptp, Npt) else "eptp"
        under = "" if self.eptp is None else f", {name}={self.eptp.value:#x}"
        return f"<AddressSpace {self.state.mode.name}, cr3={self.state.cr3:#x}{under}, {self.memory!r}>"

    # ---- bytes ---------------------------------------------------------------------------------------------

    def read(self, va, n, *, pad=None):
        """``n`` bytes from a linear address on, over page borders, whatever the pages' sizes.

        :param pad: 0..255, what bytes in holes are; None: holes are an error.
        :raises NotMappedError: there are holes; its ``.holes`` is what :meth:`holes` returns.
        """
        cdef uint64_t at = self.address(va), length = within("n", n, 0, 1 << 62, ConfigError)
        try:
            data = PyBytes_FromStringAndSize(NULL, length)
        except (MemoryError, OverflowError) as error:
            raise OutOfMemoryError(f"no memory for {length} bytes; read in parts") from error
        self.fill(at, length, <uint8_t *> PyBytes_AsString(data), pad)
        return data

    def read_into(self, va, out, *, pad=None):
        """As :meth:`read`, into a writable buffer of bytes. Returns how many of them are not in holes."""
        cdef uint8_t[::1] to = bytes_out("out", out)
        if not to.shape[0]:
            return 0
        return self.fill(self.address(va), to.shape[0], &to[0], pad)

    cdef uint64_t address(self, va) except? 0xBAD:
        cdef uint64_t at = within("va", va, 0, ~<uint64_t> 0)
        if at > self.end:
            raise StateError(f"va={at:#x} lies behind the last linear address, {self.end:#x}")
        return at

    cdef uint64_t fill(self, uint64_t at, uint64_t n, uint8_t *to, object pad) except? 0xBAD:
        cdef Gather s
        cdef Paging g
        cdef Ept e
        cdef uint64_t done = 0, had = 0, more
        self.begin(&s, &g, &e, pad)
        while done < n:
            more = min(n - done, <uint64_t> STEP)
            if n <= 64:
                had += gather(&s, at, n, to)
            else:
                with nogil:
                    had += gather(&s, at + done, more, to + done)
            done += more
            self.memory.settle()
            if had < done and pad is None:
                self.refuse(at, n)
            if done < n:
                PyErr_CheckSignals()
        return had

    cdef refuse(self, at, n):
        holes = self.holes(at, min(n, 1 << 36))
        said = [f"{start:#x}..{start + length - 1:#x} ({_WHY[Fault(fault)]})"
                for start, length, fault in holes[:3].tolist()]
        raise NotMappedError(f"of {n} bytes from {at:#x} on some are not there: {', '.join(said)}"
                             f"{', ...' if len(holes) > 3 else ''}; pad=0 reads them as zeros", holes)

    def holes(self, va, n):
        """Where in ``n`` bytes from a linear address on there is nothing to read: a record array (``HOLE_DTYPE``) of
        ``start``, ``length`` and ``fault``, a :class:`~fastmmu.dtypes.Fault`; BUS: a table, or the page itself, is
        outside memory. Bytes behind the last linear address are a hole, too. The first 4096 holes are listed.

        :param n: at most 2**36: it is asked page by page.
        """
        cdef Gather s
        cdef Paging g
        cdef Ept e
        cdef uint64_t at = self.address(va), left = within("n", n, 0, 1 << 36, ConfigError), more
        found = np.zeros(HOLES, HOLE_DTYPE)
        self.begin(&s, &g, &e, 0)
        s.dry = True
        s.hole = <Hole *> <uintptr_t> found.ctypes.data
        s.room = HOLES
        while left and s.n_holes <= s.room:
            more = min(left, <uint64_t> 1 << 30)
            if self.end - at < more - 1:
                more = left             # the last part, and what is behind the end
            with nogil:
                gather(&s, at, more, NULL)
            self.memory.settle()
            PyErr_CheckSignals()
            at += more
            left -= more
        found = found[:min(s.n_holes, s.room)].copy().view(np.recarray)
        found["length"] -= found["start"]         # the kernel says where each ends
        return found

    def read_many(self, addresses, n, *, pad=None, fault=None):
        """``n`` bytes at each of many linear addresses.

        :param addresses: as those of :func:`~fastmmu.translate`, in any shape.
        :param pad: 0..255, what bytes in holes are; None: holes are an error.
        :param fault: a uint8 array of as many elements, which gets the :class:`~fastmmu.dtypes.Fault` of the first
            byte that is missing at each address, 0 where none is.
        :returns: uint8[..., n]; of eight bytes ``.view("<u8")[..., 0]`` makes words.
        :raises NotMappedError: there are holes; its ``.holes`` are those at the first address that has any.
        """
        cdef Gather s
        cdef Paging g
        cdef Ept e
        cdef uint64_t each = within("n", n, 0, 1 << 40, ConfigError), i = 0, k, more, lacking = 0
        cdef const uint64_t[::1] va
        cdef uint8_t[::1] to
        cdef uint8_t[::1] faults = None
        asked = _addresses(addresses)
        va = asked.reshape(-1)
        k = va.shape[0]
        if fault is not None:
            faults = bytes_out("fault", fault, ConfigError)
            if <uint64_t> faults.shape[0] != k:
                raise ConfigError(f"fault has {faults.shape[0]} elements, there are {k} addresses; give as many")
        elif pad is None:
            faults = np.empty(k, np.uint8)
        try:
            out = np.empty((*asked.shape, each), np.uint8)
        except (MemoryError, ValueError) as error:
            raise OutOfMemoryError(f"no memory for {k} times {each} bytes; read in parts") from error
        self.begin(&s, &g, &e, pad)
        if not k or not each:
            if faults is not None and k:
                np.asarray(faults)[:] = 0
            return out
        to = out.reshape(-1)
        while i < k:
            more = max(<uint64_t> 1, min(k - i, <uint64_t> MANY, <uint64_t> STEP // each))
            with nogil:
                lacking += gather_many(&s, &va[i], more, each, &to[i * each],
                                       &faults[i] if faults is not None else NULL)
            self.memory.settle()
            if lacking and pad is None:
                i += int(np.argmax(np.asarray(faults[i:i + more]) != 0))
                self.refuse(self.address(va[i]), each)
            PyErr_CheckSignals()
            i += more
        return out

    # ---- tables --------------------------------------------------------------------------------------------

    def translate(self, va, *, access=None, out=None, threads=1):
        """:func:`fastmmu.translate` in this space; ``access=None``, rights left aside, is the rule."""
        self.made()
        return translate(self.memory, self.state, va, access=access, eptp=self.eptp, out=out, threads=threads)

    def mappings(self, *, start=None, stop=None, limit=None, threads=1):
        """:func:`fastmmu.mappings` of this space: a row a page, as memory is now."""
        self.made()
        return mappings(self.memory, self.state, self.eptp, start=start, stop=stop, limit=limit, threads=threads)

    def iter_mappings(self, *, start=None, stop=None, limit=None, chunk=1 << 16):
        """:func:`fastmmu.iter_mappings` of this space."""
        self.made()
        return iter_mappings(self.memory, self.state, self.eptp, start=start, stop=stop, limit=limit, chunk=chunk)

    cdef int made(self) except -1:
        if self.memory is None:
            raise StateError("this AddressSpace was not made by its constructor")
        return 0

    def where(self, pa, n=1):
        """Which addresses map a host-physical address: the rows of :meth:`mappings` whose pages hold some of the ``n``
        bytes from ``pa`` on, in the order of their addresses. The byte itself is at ``rows.va + (pa - rows.pa)``.

        The first call makes an index of the space as memory is then, which later calls use: :meth:`forget` drops it.

        :raises OutOfMemoryError: more rows than ``MAX_ROWS`` of :mod:`fastmmu.paging.mappings`.
        """
        cdef uint64_t first = within("pa", pa, 0, ~<uint64_t> 0), length = within("n", n, 1, 1 << 62, ConfigError)
        cdef uint64_t last = first + (length - 1), room, found = 0
        cdef uint32_t[::1] out
        self.made()
        if last < first:
            last = ~<uint64_t> 0
        with self.lock:
            rows = self.indexed()
            out = np.empty(64, np.uint32)
            found = reverse_find(&self.reverse, first, last, &out[0], 64)
            if found > 64:
                room = found
                out = np.empty(room, np.uint32)
                with nogil:
                    found = reverse_find(&self.reverse, first, last, &out[0], room)
        return rows[np.sort(np.asarray(out)[:found])].view(np.recarray)

    def index(self, *, threads=1):
        """Make the index that :meth:`where` uses, unless it is there; returns its rows, all mappings of the space.

        :param threads: how many enumerate them; one sorts.
        """
        self.made()
        with self.lock:
            return self.indexed(threads)

    def forget(self):
        """Drop the index that :meth:`where` uses: memory has changed, or takes too much."""
        self.made()
        with self.lock:
            self.rows = None
            reverse_free(&self.reverse)

    cdef object indexed(self, threads=1):
        cdef const LeafRow *at
        cdef uint64_t n
        cdef int failed
        if self.rows is None:
            rows = mappings(self.memory, self.state, self.eptp, threads=threads)
            rows.flags.writeable = False
            at = <const LeafRow *> <uintptr_t> rows.ctypes.data
            n = len(rows)
            with nogil:
                failed = reverse_build(&self.reverse, at, n)
            if failed:
                raise OutOfMemoryError(f"no memory for an index of {n} mappings")
            self.rows = rows
        return self.rows

    def diff(self, other, *, software=False):
        """What is mapped otherwise in another address space: a later look at this one, or that of another process.

        Pages are compared by address and size: where they lead, rights, memory type, protection key, EPT rights.

        :param other: :class:`AddressSpace`, the later one. :param software: bits of the leaf that hardware ignores
            count, and accessed and dirty flags.
        :returns: :class:`SpaceDiff`.
        :raises OutOfMemoryError: more rows than ``MAX_ROWS`` of :mod:`fastmmu.paging.mappings`.
        """
        cdef AddressSpace later = instance("other", other, AddressSpace)
        cdef bint all_bits = flag("software", software)
        later.made()
        return compare_mappings(self.mappings(), later.mappings(), software=all_bits)


class SpaceDiff:
    """What :meth:`AddressSpace.diff` found; arrays of rows (``MAPPING_DTYPE``), in the order of addresses.

    ``.added``: pages that only the later space has. ``.gone``: those that only the first has. ``.before``,
    ``.after``: pages that both have and that differ, row by row as the first and the later space have them.

    Threads: a result; as the arrays in it.
    """

    __slots__ = ("added", "after", "before", "gone")

    def __init__(self, added, gone, before, after):
        self.added, self.gone, self.before, self.after = added, gone, before, after

    def __bool__(self):
        return len(self.added) > 0 or len(self.gone) > 0 or len(self.before) > 0

    def __repr__(self):
        return f"<SpaceDiff: {len(self.added)} added, {len(self.gone)} gone, {len(self.before)} changed>"


def compare_mappings(old, new, *, software=False):
    """The :class:`SpaceDiff` of two results of :func:`fastmmu.mappings`; see :meth:`AddressSpace.diff`."""
    cdef bint all_bits = flag("software", software)
    cdef uint64_t n_old, n_new
    cdef uint64_t n[3]
    cdef const LeafRow *a
    cdef const LeafRow *b
    cdef uint32_t[::1] added, gone, changed
    for name, rows in (("old", old), ("new", new)):
        if not isinstance(rows, MappingArray) or rows.ndim != 1 or not rows.flags.c_contiguous or \
                rows.dtype != MAPPING_DTYPE:
            raise WrongTypeError(f"{name} must be what mappings() returns, whole, not {shown(rows)} "
                                 f"({type(rows).__name__})")
    n_old, n_new = len(old), len(new)
    added, gone = np.empty(n_new + 1, np.uint32), np.empty(n_old + 1, np.uint32)
    changed = np.empty(2 * min(n_old, n_new) + 2, np.uint32)
    a = <const LeafRow *> <uintptr_t> old.ctypes.data
    b = <const LeafRow *> <uintptr_t> new.ctypes.data
    with nogil:
        rows_compare(a, n_old, b, n_new, all_bits, &added[0], &gone[0], &changed[0], n)
    pairs = np.asarray(changed)[:2 * n[2]].reshape(-1, 2)
    return SpaceDiff(_rows(new, np.asarray(added)[:n[0]]), _rows(old, np.asarray(gone)[:n[1]]),
                     _rows(old, pairs[:, 0]), _rows(new, pairs[:, 1]))


def _rows(rows, numbers):
    return rows[numbers].view(np.recarray)
