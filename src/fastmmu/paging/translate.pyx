"""The batch walk for Python: arrays of linear addresses in, arrays of host-physical addresses and fault codes out."""

import threading

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._arguments cimport shown, within
from fastmmu.arch.bits cimport ONES
from fastmmu.arch.types cimport ACC_R, Ept, Paging, Walk
from fastmmu.paging.batch cimport (
    Batch, Region, batch_size, batch_step, batch_stop, batch_work, query_aside, query_init,
)
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.paging.state cimport GuestState, access_code, prepare
from fastmmu.paging.walked_tables cimport huge_where_walked
from fastmmu.threads.turns cimport SIGNALS_EVERY, nanoseconds
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError

CHUNK = 1 << 16     # addresses that a thread takes at a time; no result depends on it
_U64 = np.dtype(np.uint64)
_U8 = np.dtype(np.uint8)
_OVERLAP = "out overlaps the simulated memory, which a query never writes; give an array of its own"


cdef class Translation:
    """What :func:`translate` found; both arrays have the shape of the addresses.

    ``.pa``: host-physical addresses (uint64), all ones where an address did not translate. ``.fault``: codes (uint8)
    of :class:`~fastmmu.dtypes.Fault`, 0 where it did. Made by hand it is that of no address.

    Threads: a result; as the arrays in it.
    """

    cdef readonly object pa
    cdef readonly object fault

    def __cinit__(self):
        self.pa, self.fault = np.empty(0, _U64), np.empty(0, _U8)

    def __reduce__(self):
        return _restored, (self.pa, self.fault)

    def __repr__(self):
        cdef Py_ssize_t faults = np.count_nonzero(self.fault)
        return f"<translation of {self.pa.size} addresses, {faults} faults>"


def _restored(pa, fault):
    cdef Translation result = Translation.__new__(Translation)
    result.pa, result.fault = pa, fault
    return result


cdef class _Batch:
    # One call. Holds the buffers as long as a thread may use them: each thread runs a bound method.
    cdef Paging paging
    cdef Ept ept
    cdef Batch b
    cdef object memory
    cdef Py_buffer va, pa, fault

    def __dealloc__(self):
        PyBuffer_Release(&self.va)
        PyBuffer_Release(&self.pa)
        PyBuffer_Release(&self.fault)
        free(self.b.regions)

    cdef int reserve(self, int threads) except -1:
        self.b.va = <const uint64_t *> self.va.buf
        self.b.pa = <uint64_t *> self.pa.buf
        self.b.fault = <uint8_t *> self.fault.buf
        batch_size(&self.b)
        self.b.regions = <Region *> calloc(self.b.each * threads, sizeof(Region))
        if self.b.regions == NULL:
            raise OutOfMemoryError(f"no memory for the caches of {threads} threads; ask for fewer")
        return 0

    def run(self, int worker):
        # of a thread that this module started
        with nogil:
            batch_work(&self.b, worker)

    cdef int work(self) except -1:
        # of the caller's, which a signal can end
        cdef uint64_t since = nanoseconds()
        cdef bint more = True
        while more:
            with nogil:
                while more and nanoseconds() - since < SIGNALS_EVERY:
                    more = batch_step(&self.b, 0)
            if more:
                PyErr_CheckSignals()
                since = nanoseconds()
        return 0


def translate(PhysicalMemory mem not None, GuestState state not None, va, *, access="r", eptp=None, out=None,
              threads=1):
    """Translate many linear addresses: for each the outcome of ``walk(mem, state, address, access=, eptp=)``.

    A query: memory is never written, so read-only and memory-mapped memory works, and a page-modification log has no
    part in it: one that is full stops an access, not a translation. A PTE or table outside memory
    gives the fault BUS for the addresses that need it; what an address translates to may lie outside memory.

    :param mem: host physical memory. :param state: registers.
    :param va: linear addresses, an integer or anything array-like of integers in any shape, strides, byte order or
        width. Signed integers are sign-extended to 64 bits: a kernel address may come as a negative number.
    :param access: "r", "w", "rw" (read-modify-write) or "x" (fetch), the same for all. None: rights are left aside, as
        :func:`mappings` does; an address has a fault only where an entry is not present, malformed or outside memory,
        in the guest's tables or in the EPT, and where the page walker may not read (with EPT A/D flags: write) a table.
    :param eptp: EPT pointer (int or :class:`Eptp`), or :class:`Npt`, AMD's nested paging; None = neither.
    :param out: where the result goes: a writable uint64 array of the shape of ``va`` for the physical addresses, or a
        previous :class:`Translation`, both of whose arrays are filled. It may overlap ``va``, which is then copied
        first; it may not overlap ``mem``.
    :param threads: how many threads share the work; the result does not depend on it.
    :returns: :class:`Translation` with ``.pa`` (uint64) and ``.fault`` (uint8); ``out`` itself if that is one.
    :raises StateError: addresses that are no integers of 64 bits, an access or EPTP that is none.
    :raises BusError: a root table outside memory. :raises ConfigError: an ``out`` or ``threads`` that does not fit.
    """
    cdef _Batch batch = _Batch.__new__(_Batch)
    cdef Translation result
    cdef Walk w
    cdef int acc = ACC_R if access is None else access_code(access), workers
    addresses = _addresses(va)
    cdef uint64_t most = within("threads", threads, 1, 1 << 62, ConfigError)
    cdef int fault = prepare(mem, state, eptp, False, NULL, &batch.paging, &batch.ept, &w)
    if out is None:
        result = Translation.__new__(Translation)
        result.pa = np.empty(addresses.shape, _U64)
        result.fault = np.empty(addresses.shape, _U8)
    else:
        result = _checked(out, addresses.shape)
    pa = result.pa
    if not simple(pa):
        if mem._u8 is not None and np.may_share_memory(pa, mem._u8):
            raise ConfigError(_OVERLAP)
        pa = np.empty(addresses.shape, _U64)
    batch.memory = mem
    batch.b.n = addresses.size
    PyObject_GetBuffer(addresses, &batch.va, PyBUF_SIMPLE)
    PyObject_GetBuffer(pa, &batch.pa, PyBUF_WRITABLE)
    PyObject_GetBuffer(result.fault, &batch.fault, PyBUF_WRITABLE)
    if overlap(&batch.pa, mem.mem.base, mem.top):
        raise ConfigError(_OVERLAP)
    if fault:                       # no PDPTE registers, so nothing translates
        result.pa[...] = ONES
        result.fault[...] = fault
        return result
    if overlap(&batch.pa, batch.va.buf, batch.va.len):
        PyBuffer_Release(&batch.va)
        PyObject_GetBuffer(addresses.copy(), &batch.va, PyBUF_SIMPLE)
    cdef Ept *ept = &batch.ept if eptp is not None else NULL
    if access is None:
        query_aside(&batch.b.query, &mem.mem, &batch.paging, ept)
    else:
        query_init(&batch.b.query, &mem.mem, &batch.paging, ept, acc)
    mem.looked_up += batch.b.n
    if mem.looked_up >= mem.next_look:          # 1, 4, 16, ... million addresses
        mem.next_look <<= 2
        with nogil:
            huge_where_walked(batch.b.query.m, batch.b.query.g, batch.b.query.e, acc, <const uint64_t *> batch.va.buf,
                              batch.b.n, <uint32_t> (mem.looked_up >> 16))
    batch.b.chunk = CHUNK
    if most == 1:
        batch.reserve(1)
        batch.work()
    else:
        workers = max(1, min(most, (batch.b.n + CHUNK - 1) // CHUNK))
        batch.reserve(workers)
        _share(batch, workers)
    mem.settle()
    if pa is not result.pa:
        result.pa[...] = pa
    return result


def _share(_Batch batch, int workers):
    # The calling thread works too, so a thread that the system refuses costs only time.
    others = [threading.Thread(target=batch.run, args=(i,), name="fastmmu.translate") for i in range(1, workers)]
    started = []
    try:
        for thread in others:
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    try:
        batch.work()
    finally:                        # of an exception, too: the others must not work behind the caller's back
        batch_stop(&batch.b)
        for thread in started:
            thread.join()


def _addresses(va):
    # as a contiguous array of native uint64
    try:
        array = np.asarray(va)
    except Exception as error:
        raise StateError(f"linear addresses must be an array of integers: {error}; give dtype=np.uint64") from error
    if array.dtype is not _U64:
        kind = array.dtype.kind
        if kind == "i":
            array = array.astype(np.int64).view(_U64)
        elif kind == "u" or array.size == 0 and not isinstance(va, (np.ndarray, np.generic)):
            array = array.astype(_U64)      # of an empty list NumPy makes floating point
        elif kind == "O" or kind == "f" and not isinstance(va, (np.ndarray, np.generic)):
            array = _integers(np.asarray(va, dtype=object))     # and of a list of small and large integers
        else:
            why = {"f": "floating point holds only 53 bits of an address", "b": "these are truth values"}
            raise StateError(f"linear addresses of dtype {array.dtype}: {why.get(kind, 'these are no integers')}; "
                             "build them with dtype=np.uint64")
    if not simple(array):
        array = array.copy(order="C")
    return array


def _integers(objects):
    values = objects.ravel().tolist()
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -(1 << 63) <= value < 1 << 64:
            raise StateError(f"a linear address is an integer of 64 bits, not {shown(value)}")
    return np.array([int(value) % (1 << 64) for value in values], _U64).reshape(objects.shape)


def _checked(out, tuple shape):
    cdef Translation result
    if isinstance(out, Translation):
        result = out
    elif isinstance(out, np.ndarray):
        result = Translation.__new__(Translation)
        result.pa = out
        result.fault = np.empty(shape, _U8)
    else:
        raise ConfigError(f"out must be a uint64 array or a previous result, not {type(out).__name__}")
    pa = result.pa
    if pa.dtype is not _U64 and pa.dtype != _U64:
        raise ConfigError(f"out has dtype {pa.dtype}; physical addresses need uint64 in native byte order")
    if pa.shape != shape:
        raise ConfigError(f"out has shape {pa.shape}, the addresses have {shape}; give one of the same shape")
    if not (pa.flags.writeable and result.fault.flags.writeable):
        raise ConfigError("out is read-only; give a writable array")
    return result


cdef bint simple(array) except -1:
    # C-contiguous and aligned, in the bits of NPY_ARRAY_CARRAY_RO
    cdef int flags = array.flags.num
    return flags & 0x101 == 0x101


cdef bint overlap(const Py_buffer *view, const void *start, uint64_t nbytes) noexcept:
    return <const char *> start < <const char *> view.buf + view.len and \
        <const char *> view.buf < <const char *> start + nbytes
